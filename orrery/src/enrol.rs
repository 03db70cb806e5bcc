//! `orrery enrol`: tokens by which machines with a public medium become nodes.

use std::path::PathBuf;

use anyhow::{Context as _, Result, ensure};
use clap::Subcommand;
use orrery_central_api::{EnrolmentRecord, NewEnrolment, checked_groups, token_digest};
use orrery_protocol::{BootState, RecoveryKey, is_node_id};
use serde_json::json;
use ureq::http::Method;

use crate::{
    context::Context,
    files::{Access, Draft},
    keys::{random, with_suffix},
    node::{ConfigOptions, word},
    units::{Seconds, now, show_time, table},
};

#[derive(Subcommand)]
pub(crate) enum Enrol {
    /// Make a node without a key, and the token that one machine can become it with. The token is printed once.
    New {
        /// The node's id.
        #[arg(long, value_name = "ID")]
        node: String,
        /// A name for people.
        #[arg(long, default_value = "")]
        name: String,
        /// A group that it is in.
        #[arg(long = "group", value_name = "GROUP", value_delimiter = ',')]
        groups: Vec<String>,
        /// How long the token is good.
        #[arg(long, value_name = "SPAN", default_value = "7d")]
        expires: Seconds,
        /// What is wanted of the node first.
        #[arg(long, value_name = "STATE", default_value_t = BootState::Reinstall)]
        state: BootState,
    },
    /// List tokens, newest first; what they are is not kept.
    List,
    /// Take back the open tokens of nodes.
    Revoke {
        /// The nodes' ids.
        #[arg(required = true)]
        ids: Vec<String>,
    },
    /// Write a configuration without a key, for public media.
    Config(Box<Config>),
}

#[derive(clap::Args)]
pub(crate) struct Config {
    /// Where the configuration goes.
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
    /// The token that the machine enrols with. Without one, the configuration is not complete: `enrol_token` must be added to
    /// it before a medium can use it.
    #[arg(long)]
    token: Option<String>,
    #[command(flatten)]
    config: ConfigOptions,
}

pub(crate) fn run(context: &Context, command: Enrol) -> Result<()> {
    match command {
        Enrol::New { node, name, groups, expires, state } => {
            // As long as a recovery key, and as easy to read out over the telephone.
            let token = RecoveryKey::from_random(&random()?).to_string();
            let groups = checked_groups(&groups).map_err(|bad| anyhow::anyhow!("`{bad}` cannot name a group"))?;
            let expires = now().checked_add(expires.0).context("it would never expire")?;
            let digest = token_digest(&token);
            let new = NewEnrolment { token: digest, node, name, groups, boot_state: state, expires };
            let record: EnrolmentRecord = context.client()?.exchange(Method::POST, "/v1/enrolments", &new)?;
            context.print(&json!({ "token": token, "enrolment": record }), |_| {
                let until = show_time(record.expires);
                format!("{token}\ngood for one machine to become {}, until {until}; it is not shown again", record.node)
            })
        }
        Enrol::List => {
            let tokens: Vec<EnrolmentRecord> = context.client()?.get("/v1/enrolments")?;
            context.print(&tokens, |tokens| {
                let mut rows = vec![["NODE", "STANDING", "CREATED", "EXPIRES"].map(str::to_owned).to_vec()];
                rows.extend(tokens.iter().map(|t| {
                    vec![t.node.clone(), word(&Some(t.standing)), show_time(t.created), show_time(t.expires)]
                }));
                table(&rows)
            })
        }
        Enrol::Revoke { ids } => {
            let client = context.client()?;
            for id in &ids {
                ensure!(is_node_id(id), "`{id}` is not a node id");
                client.call(Method::DELETE, &format!("/v1/enrolments/{id}"))?;
            }
            context.print(&json!({ "revoked": ids }), |_| format!("revoked the tokens of {}", ids.join(", ")))
        }
        Enrol::Config(config) => config.run(context),
    }
}

impl Config {
    fn run(&self, context: &Context) -> Result<()> {
        let (mut config, recovery) = self.config.config(&context.operator()?)?;
        config.enrol_token.clone_from(&self.token);
        if self.token.is_some() {
            config.check()?;
        }
        let text = toml::to_string_pretty(&config).context("writing the configuration as TOML")?;
        let draft = Draft::new(&self.out, text.as_bytes(), Access::Secret)?;
        let recovery_path = with_suffix(&self.out, ".recovery");
        Draft::new(&recovery_path, format!("{recovery}\n").as_bytes(), Access::Secret)?.commit()?;
        draft.commit()?;
        let value = json!({ "config": self.out, "recovery": recovery_path });
        context.print(&value, |_| {
            let next = match self.token {
                Some(_) => "stamp it into a medium",
                None => "add `enrol_token` to it before it is stamped",
            };
            let (out, recovery) = (self.out.display(), recovery_path.display());
            format!("wrote {out}: {next}; the key to the console is in {recovery}: keep it apart")
        })
    }
}
