//! The node's own root, on the serial console: how a scenario looks at a node from outside its slivers.

use std::{fs, time::Duration};

use anyhow::{Context, Result, bail};
use orrery_qemu::Vm;

use super::Node;

/// A prompt and the shell's start, on an emulated processor.
const OPENING: Duration = Duration::from_secs(60);
/// Before each line that a command prints, and before its exit status. The shell makes them out of a sum, so that they are not
/// in what is typed.
const OUTPUT: &str = "@42|";
const STATUS: &str = "@42=";

/// A shell that was opened with the node's recovery key.
pub(crate) struct RootShell<'a> {
    vm: &'a mut Vm,
}

impl<'a> RootShell<'a> {
    /// Opens one on the console of `node`'s running machine.
    ///
    /// # Errors
    /// There is no prompt for the key, or it is not accepted.
    pub(crate) fn open(node: &Node, vm: &'a mut Vm) -> Result<Self> {
        let path = node.config.with_extension("toml.recovery");
        let key = fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))?;
        // An empty line has the prompt shown again.
        vm.send("\n").context("typing on the console")?;
        vm.expect("recovery key:", OPENING)?;
        vm.send(&format!("{}\n", key.trim())).context("typing the recovery key")?;
        // What is typed before the shell reads is thrown away.
        vm.expect("# ", OPENING)?;
        let mut shell = Self { vm };
        shell.run("true", OPENING)?;
        Ok(shell)
    }

    /// The machine whose console this is.
    pub(crate) fn vm(&mut self) -> &mut Vm {
        self.vm
    }

    /// Runs a command line and returns what it printed on both outputs.
    ///
    /// # Errors
    /// It failed, or did not end in time.
    pub(crate) fn run(&mut self, command: &str, within: Duration) -> Result<String> {
        let from = self.vm.console().lines().len();
        // A subshell writes its status where no pipe takes it away.
        let line = format!(
            r#"{{ ({command}) 2>&1; echo $? >/tmp/status; }} | sed "s/^/@$((40 + 2))|/"; echo "@$((40 + 2))=$(cat /tmp/status)""#
        );
        self.vm.send(&format!("{line}\n")).context("typing on the console")?;
        let status = self.vm.expect(STATUS, within)?.line;
        let lines = self.vm.console().lines();
        let printed = lines.iter().skip(from.saturating_sub(1)).filter_map(|line| line.text.split_once(OUTPUT));
        let printed: String = printed.map(|(_, text)| format!("{text}\n")).collect();
        match status.split_once(STATUS) {
            Some((_, "0")) => Ok(printed),
            _ => bail!("`{command}` on the node ended with {status:?}: {printed}"),
        }
    }
}
