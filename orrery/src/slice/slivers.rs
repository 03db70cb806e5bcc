//! How the slivers of a slice are on their nodes: shown, and waited for.

use std::{
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use indicatif::ProgressBar;
use orrery_central_api::SliverRecord;
use orrery_protocol::SliceName;
use orrery_transport::Client;

use super::{connect::on_all, path};
use crate::{
    context::Context,
    node::word,
    units::{Seconds, clean},
};

/// How often central is asked.
const PACE: Duration = Duration::from_secs(1);

/// Options of `orrery slice wait`.
#[derive(clap::Args)]
pub(crate) struct Wait {
    /// The slice.
    slice: SliceName,
    /// Ids of the nodes whose slivers are meant; all of the slice by default.
    #[arg(long = "node", value_name = "ID", value_delimiter = ',')]
    nodes: Vec<String>,
    /// How long it may take.
    #[arg(long, value_name = "SPAN", default_value = "10m")]
    timeout: Seconds,
}

impl Wait {
    /// Waits until slivers are as their slice is to be, or one cannot become so.
    pub(crate) fn run(self, context: &Context) -> Result<()> {
        let client = context.client()?;
        let deadline = Instant::now() + Duration::from_secs(self.timeout.0);
        let bar = if context.json() { ProgressBar::hidden() } else { ProgressBar::new_spinner() };
        loop {
            let slivers = self.meant(fetch(&client, &self.slice)?)?;
            let open: Vec<_> = slivers.iter().filter(|sliver| !sliver.settled).collect();
            if open.is_empty() {
                bar.finish_and_clear();
                return context.print(&slivers, |slivers| lines(slivers));
            }
            if let Some(sliver) = open.iter().find(|sliver| sliver.told && sliver.error.is_some()) {
                bail!("{}", line(sliver));
            }
            let open = open.into_iter().map(line).collect::<Vec<_>>().join("; ");
            ensure!(Instant::now() < deadline, "after {} s, not as wanted: {open}", self.timeout.0);
            bar.set_message(open);
            bar.tick();
            thread::sleep(PACE);
        }
    }

    fn meant(&self, mut slivers: Vec<SliverRecord>) -> Result<Vec<SliverRecord>> {
        let there: Vec<_> = slivers.iter().map(|sliver| sliver.node.clone()).collect();
        on_all(&self.slice, &there, &self.nodes)?;
        slivers.retain(|sliver| self.nodes.is_empty() || self.nodes.contains(&sliver.node));
        Ok(slivers)
    }
}

/// How the slivers of a slice are.
pub(super) fn fetch(client: &Client, slice: &SliceName) -> Result<Vec<SliverRecord>> {
    client.get(&format!("{}/slivers", path(slice))).with_context(|| format!("asking for the slivers of {slice}"))
}

/// What there is to say of a sliver.
pub(super) fn line(sliver: &SliverRecord) -> String {
    let state = match &sliver.state {
        Some(state) => word(&Some(*state)),
        None => "the node has not told of it yet".to_owned(),
    };
    let pending = match (sliver.state, sliver.told, sliver.settled) {
        (None, ..) | (_, true, true) => "",
        (_, false, _) => ", last change not taken up yet",
        (_, true, false) => ", not all as wanted yet",
    };
    let error = sliver.error.as_deref().map(|error| format!(": {}", clean(error))).unwrap_or_default();
    format!("{}: {state}{pending}{error}", sliver.node)
}

fn lines(slivers: &[SliverRecord]) -> String {
    slivers.iter().map(line).collect::<Vec<_>>().join("\n")
}

#[cfg(test)]
mod tests {
    use orrery_protocol::SliverState;

    use super::*;

    #[test]
    fn a_line_says_what_is_still_to_come() {
        let check = |state, told, settled, error: Option<&str>, expect: &str| {
            let error = error.map(str::to_owned);
            let node = "n1".to_owned();
            let sliver = SliverRecord { node, last_seen: None, state, image: None, told, settled, error };
            assert_eq!(line(&sliver), expect);
        };
        let ready = Some(SliverState::Ready);
        check(None, false, false, None, "n1: the node has not told of it yet");
        check(ready, true, true, None, "n1: ready");
        check(ready, false, false, None, "n1: ready, last change not taken up yet");
        check(ready, true, false, Some("no\x1b room"), "n1: ready, not all as wanted yet: no  room");
    }
}
