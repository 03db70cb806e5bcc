//! What runs in a sliver without a login, and how an image says that it is run.

use alloc::{string::String, vec::Vec};
use core::fmt;

use serde::{Deserialize, Serialize};

/// The longest initscript, in bytes: every node is told of it at every poll.
pub const MAX_INITSCRIPT: usize = 16 << 10;
/// The longest command of a service, all words together.
const MAX_COMMAND: usize = 16 << 10;

/// What a node runs in a sliver by itself. The default is nothing.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Startup {
    /// A script that the sliver's root runs whenever the sliver starts, with the arguments `start` and the slice's name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub initscript: Option<String>,
    /// A program that is kept running.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub service: Option<Service>,
}

/// A program that a node keeps running in a sliver.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Service {
    /// The program with its arguments; what the image says of itself if it is empty. Environment, working directory, user and
    /// stop signal are the image's either way.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub command: Vec<String>,
    /// What follows its end.
    pub restart: Restart,
}

/// Whether a service that ended is started again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Restart {
    /// However it ended.
    #[default]
    Always,
    /// Unless it ended with status 0.
    OnFailure,
    /// Only when the sliver is restarted or reset, and with the node.
    No,
}

/// Something that a node would not run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StartupError {
    /// Empty, too long, or not text.
    Initscript,
    /// Too long, or a word that is empty or no argument.
    Command,
}

impl fmt::Display for StartupError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Initscript => {
                write!(
                    f,
                    "an initscript has 1 to {MAX_INITSCRIPT} bytes, none of them NUL; have it fetch what is longer"
                )
            }
            Self::Command => write!(
                f,
                "the command of a service has at most {MAX_COMMAND} bytes without NUL, and begins with a program's name"
            ),
        }
    }
}

impl core::error::Error for StartupError {}

impl Startup {
    /// Checks that a node can run it.
    ///
    /// # Errors
    /// What cannot be run.
    pub fn check(&self) -> Result<(), StartupError> {
        let plain = |text: &str, most| text.len() <= most && !text.contains('\0');
        if self.initscript.as_ref().is_some_and(|script| script.is_empty() || !plain(script, MAX_INITSCRIPT)) {
            return Err(StartupError::Initscript);
        }
        let command = self.service.as_ref().map_or(&[][..], |service| &service.command);
        let length: usize = command.iter().map(|word| word.len() + 1).sum();
        let nameless = command.first().is_some_and(String::is_empty);
        if nameless || length > MAX_COMMAND || command.iter().any(|word| !plain(word, MAX_COMMAND)) {
            return Err(StartupError::Command);
        }
        Ok(())
    }
}

/// How a container of an image would be started (OCI image specification 1.1, `config`). Importing an image keeps it in the tree, as
/// `/.orrery/oci.json`.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct RunConfig {
    /// User, or user and group, by name or number.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// Variables as `NAME=value`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub env: Option<Vec<String>>,
    /// The program with its first arguments.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub entrypoint: Option<Vec<String>>,
    /// Further arguments, or the program if there is no entrypoint.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cmd: Option<Vec<String>>,
    /// The folder to start in.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub working_dir: Option<String>,
    /// The signal that ends the program.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stop_signal: Option<String>,
}

impl RunConfig {
    /// Where an image has it, from its top.
    pub const PATH: &'static str = ".orrery/oci.json";

    /// The whole command.
    pub fn command(&self) -> Vec<String> {
        self.entrypoint.iter().chain(&self.cmd).flatten().cloned().collect()
    }
}

#[cfg(test)]
mod tests {
    use alloc::{borrow::ToOwned, vec};

    use super::*;

    #[test]
    fn what_cannot_be_run_is_refused() {
        let check = |initscript: Option<&str>, command: &[&str], expect| {
            let command = command.iter().map(|&word| word.to_owned()).collect();
            let service = Some(Service { command, restart: Restart::No });
            let startup = Startup { initscript: initscript.map(ToOwned::to_owned), service };
            assert_eq!(startup.check(), expect);
        };
        check(None, &[], Ok(()));
        check(Some("#!/bin/sh\n"), &["nginx", ""], Ok(()));
        check(Some(""), &[], Err(StartupError::Initscript));
        check(Some("a\0b"), &[], Err(StartupError::Initscript));
        check(Some(&"x".repeat(MAX_INITSCRIPT)), &[], Ok(()));
        check(Some(&"x".repeat(MAX_INITSCRIPT + 1)), &[], Err(StartupError::Initscript));
        check(None, &[""], Err(StartupError::Command));
        check(None, &["a", "b\0"], Err(StartupError::Command));
        check(None, &["a", &"x".repeat(MAX_COMMAND)], Err(StartupError::Command));
    }

    #[test]
    fn nothing_runs_unless_it_is_asked_for() {
        let check = |text: &str, expect: Startup| {
            let startup: Startup = serde_json::from_str(text).unwrap();
            assert_eq!(startup, expect);
            assert_eq!(serde_json::from_str::<Startup>(&serde_json::to_string(&startup).unwrap()).unwrap(), expect);
        };
        check("{}", Startup::default());
        check(r#"{"service":{}}"#, Startup { initscript: None, service: Some(Service::default()) });
        let service = Service { command: vec!["a".into()], restart: Restart::OnFailure };
        check(
            r#"{"initscript":"true","service":{"command":["a"],"restart":"on-failure"}}"#,
            Startup { initscript: Some("true".into()), service: Some(service) },
        );
        assert!(serde_json::from_str::<Startup>(r#"{"service":{"comand":["a"]}}"#).is_err());
    }

    #[test]
    fn an_images_command_is_entrypoint_and_arguments() {
        let check = |text: &str, expect: &[&str]| {
            let run: RunConfig = serde_json::from_str(text).unwrap();
            assert_eq!(run.command(), expect);
        };
        check(r#"{"Entrypoint":["a","b"],"Cmd":["c"],"Labels":{}}"#, &["a", "b", "c"]);
        check(r#"{"Cmd":["c"],"Entrypoint":null}"#, &["c"]);
        check("{}", &[]);
    }
}
