//! What the kernel keeps for a sliver, which the sliver pays for.

use std::io::{BufRead, BufReader};

use anyhow::{Context, Result, ensure};
use orrery_protocol::Rspec;

use super::Node;

/// What has the kernel keep something, in Perl; how often; and what each takes at least, in bytes.
const KINDS: &[(&str, &str, u64, u64)] = &[
    // fcntl(2): F_SETLK, a write lock on one byte. Many files, since the kernel walks through all locks of one.
    (
        "locks on files",
        "for $f (1..100) { open($f[$f], '+>', '/var/tmp/locked'.$f) or die; \
         for (1..500) { fcntl($f[$f], 6, pack('ssx4qqix4', 1, 0, 2 * $_, 1, 0)) or die $! } }",
        50_000,
        150,
    ),
    // netlink(7): a message of no kind that asks to be acknowledged.
    (
        "netlink answers that nobody reads",
        "for (1..100) { socket(my $s, 16, 3, 0) or die; push @s, $s } \
         for $s (@s) { for (1..200) { syswrite($s, pack('LSSLL', 16, 1, 5, 1, 0)) or die $! } }",
        20_000,
        500,
    ),
];

pub(crate) fn kept(node: &Node) -> Result<()> {
    let login = node.start("keeper", Rspec::default())?;
    let held = || -> Result<u64> {
        let held = node.slivers.memory_held().into_iter().find(|held| held.login == login);
        Ok(held.context("it does not run")?.bytes)
    };
    for (what, program, count, least) in KINDS {
        let program = format!(
            "$| = 1; print qq(before\\n); select(undef, undef, undef, 0.02) until unlink('/var/tmp/go'); \
             {program}; print qq(after\\n); sleep 1000"
        );
        let line = format!("ulimit -n 60000; exec perl -e \"{}\"", program.replace('$', "\\$"));
        let mut session = node.enter(&login, &line)?;
        let mut said = BufReader::new(session.stdout.take().context("no output")?).lines();
        let mut says = |expect: &str| -> Result<()> {
            let line = said.next().context("no line")??;
            ensure!(line == expect, "{what}: {line}");
            Ok(())
        };
        says("before")?;
        let before = held()?;
        node.said(&login, "touch /var/tmp/go")?;
        says("after")?;
        let grown = held()?.saturating_sub(before);
        println!("    {count} {what}: {} KiB more held", grown >> 10);
        ensure!(grown > count * least, "the sliver pays for {grown} bytes of {count} {what}");
        node.slivers.stop(&login)?;
        node.slivers.start(&login)?;
    }
    Ok(())
}
