//! Central: boot server, wanted state, reports.

use std::{io::Write, net::SocketAddr, path::PathBuf, process::ExitCode};

use anyhow::{Context, Result};
use clap::{Parser, Subcommand};
use orrery_central::{
    InitOptions, Server, authority_files, change_hosts, hosts, init, new_authority,
    operators::{self, OperatorRecord},
};
use serde_json::json;
use tokio::signal::unix::{SignalKind, signal};
use tracing_subscriber::EnvFilter;

/// Central: the server side of Orrery. Exit status: 0 ended as asked, 1 failed, 2 wrong usage.
#[derive(Parser)]
#[command(version, about)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
    /// Print results and log lines as JSON.
    #[arg(long, global = true)]
    json: bool,
}

#[derive(Subcommand)]
enum Command {
    /// Make a data folder: certificate authority, database, and the first operator's folder.
    Init {
        /// The data folder; absent or empty.
        #[arg(long, value_name = "DIR")]
        data: PathBuf,
        /// Addresses and names that nodes and operators reach central by.
        #[arg(long, value_name = "NAME_OR_IP", required = true, num_args = 1..)]
        host: Vec<String>,
        /// The port in the operator's URL.
        #[arg(long, default_value_t = 8443)]
        port: u16,
    },
    /// Certificate authorities: those the server may show certificates of.
    Ca {
        /// What to do with them.
        #[command(subcommand)]
        command: Ca,
    },
    /// The names and addresses that the server's certificate is for.
    Host {
        /// What to do with them.
        #[command(subcommand)]
        command: Host,
    },
    /// Operators: whose keys may use the administrative API. A running server takes changes up at once.
    Operator {
        /// What to do with them.
        #[command(subcommand)]
        command: Operator,
    },
    /// Serve nodes and operators until SIGTERM or SIGINT.
    Serve {
        /// The data folder.
        #[arg(long, value_name = "DIR")]
        data: PathBuf,
        /// Addresses to listen on; port 0 picks a free one.
        #[arg(long, value_name = "ADDR:PORT", default_value = "[::]:8443", num_args = 1..)]
        listen: Vec<SocketAddr>,
        /// What to log, as in `info` or `orrery_central=debug`.
        #[arg(long, value_name = "FILTER", env = "ORRERY_LOG", default_value = "info")]
        log: String,
    },
}

#[derive(Subcommand)]
enum Ca {
    /// Make the next authority. The server uses it once a published trust update names it, and none made before it.
    New {
        /// The data folder.
        #[arg(long, value_name = "DIR")]
        data: PathBuf,
    },
    /// List the certificates of all authorities, oldest first.
    List {
        /// The data folder.
        #[arg(long, value_name = "DIR")]
        data: PathBuf,
    },
}

#[derive(Subcommand)]
enum Host {
    /// Add names and addresses. The server has a certificate for them after its next start.
    Add {
        /// The data folder.
        #[arg(long, value_name = "DIR")]
        data: PathBuf,
        /// What nodes and operators reach central by, too.
        #[arg(value_name = "NAME_OR_IP", required = true)]
        hosts: Vec<String>,
    },
    /// Remove names and addresses. Nodes that know central by no other cannot reach it any more.
    Remove {
        /// The data folder.
        #[arg(long, value_name = "DIR")]
        data: PathBuf,
        /// What to remove.
        #[arg(value_name = "NAME_OR_IP", required = true)]
        hosts: Vec<String>,
    },
    /// List them.
    List {
        /// The data folder.
        #[arg(long, value_name = "DIR")]
        data: PathBuf,
    },
}

#[derive(Subcommand)]
enum Operator {
    /// Add an operator, and make the folder to carry to the operator's machine, with a new private key.
    Add {
        /// The data folder.
        #[arg(long, value_name = "DIR")]
        data: PathBuf,
        /// The operator's name.
        name: String,
        /// The folder to make.
        #[arg(long, value_name = "DIR")]
        to: PathBuf,
        /// The port in the operator's URL.
        #[arg(long, default_value_t = 8443)]
        port: u16,
    },
    /// Remove an operator; the key is refused from the next request on.
    Remove {
        /// The data folder.
        #[arg(long, value_name = "DIR")]
        data: PathBuf,
        /// The operator's name.
        name: String,
    },
    /// List operators, oldest first.
    List {
        /// The data folder.
        #[arg(long, value_name = "DIR")]
        data: PathBuf,
    },
}

fn main() -> ExitCode {
    let Arguments { command, json } = Arguments::parse();
    let result = match command {
        Command::Init { data, host, port } => make(&InitOptions { data, hosts: host, port }, json),
        Command::Ca { command } => ca(&command, json),
        Command::Host { command } => host(&command, json),
        Command::Operator { command } => operator(&command, json),
        Command::Serve { data, listen, log } => serve(&data, &listen, &log, json),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("orrery-central: {}", explain(&error));
            ExitCode::FAILURE
        }
    }
}

fn make(options: &InitOptions, json: bool) -> Result<()> {
    let made = init(options)?;
    if json {
        return say(&serde_json::to_string(&made)?);
    }
    say(&format!(
        "made {}\n\nThe first operator's folder is {}: move it to the operator's machine, it holds a private key.\n\
         Start the server with: orrery-central serve --data {}",
        made.data.display(),
        made.operator.display(),
        made.data.display(),
    ))
}

fn ca(command: &Ca, json: bool) -> Result<()> {
    let certificates = match command {
        Ca::New { data } => vec![new_authority(data)?],
        Ca::List { data } => authority_files(data),
    };
    if json {
        return say(&json!(certificates).to_string());
    }
    certificates.iter().try_for_each(|path| say(&path.display().to_string()))
}

fn host(command: &Host, json: bool) -> Result<()> {
    let all = match command {
        Host::Add { data, hosts } => change_hosts(data, hosts, &[])?,
        Host::Remove { data, hosts } => change_hosts(data, &[], hosts)?,
        Host::List { data } => hosts(data)?,
    };
    if json {
        return say(&json!(all).to_string());
    }
    all.iter().try_for_each(|host| say(host))
}

fn operator(command: &Operator, json: bool) -> Result<()> {
    let data = match command {
        Operator::Add { data, name, to, port } => {
            operators::add(data, name, *port, to)?;
            if !json {
                return say(&format!(
                    "made {}: move it to the operator's machine, it holds a private key",
                    to.display()
                ));
            }
            data
        }
        Operator::Remove { data, name } => {
            operators::remove(data, name)?;
            data
        }
        Operator::List { data } => data,
    };
    let operators = operators::list(data)?;
    if json {
        return say(&json!(operators).to_string());
    }
    operators.iter().try_for_each(|OperatorRecord { name, spki, .. }| say(&format!("{name}  {spki}")))
}

fn serve(data: &std::path::Path, listen: &[SocketAddr], log: &str, json: bool) -> Result<()> {
    let log = EnvFilter::try_new(log).context("reading the log filter")?;
    let subscriber = tracing_subscriber::fmt().with_env_filter(log).with_writer(std::io::stderr).with_ansi(false);
    if json {
        subscriber.json().init();
    } else {
        subscriber.init();
    }
    let server = Server::bind(data, listen)?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().context("starting threads")?;
    runtime.block_on(async {
        let mut terminate = signal(SignalKind::terminate()).context("watching for SIGTERM")?;
        let mut interrupt = signal(SignalKind::interrupt()).context("watching for SIGINT")?;
        for address in server.addresses() {
            let url = format!("https://{address}");
            say(&if json { json!({ "listening": url }).to_string() } else { format!("listening on {url}") })?;
        }
        let stop = async {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
        };
        Ok(server.run(stop).await?)
    })
}

/// Prints a line that a waiting program sees at once.
fn say(line: &str) -> Result<()> {
    let mut out = std::io::stdout().lock();
    writeln!(out, "{line}").and_then(|()| out.flush()).context("writing to standard output")
}

/// The error with its causes, each said once: some messages repeat what caused them.
fn explain(error: &anyhow::Error) -> String {
    error.chain().map(ToString::to_string).fold(String::new(), |said, cause| match said {
        said if said.is_empty() => cause,
        said if said.contains(&cause) => said,
        said => format!("{said}: {cause}"),
    })
}
