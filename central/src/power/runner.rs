//! The loop that does what is pending, tests what is due, tells of what happened, and goes on patrol.

use std::{
    collections::HashSet,
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use orrery_central_api::{
    PowerAttempt, PowerEvent, PowerFailure, PowerOperation, PowerOutcome, PowerResult, PowerTest,
};
use orrery_pcu::Method;
use serde_json::Value;
use tokio::{
    sync::{oneshot, watch},
    task::JoinSet,
    time::{MissedTickBehavior, interval, timeout},
};

use super::{Power, guard::Guard, methods, notify, patrol::patrol, perform::Devices};
use crate::{
    db::{
        Database, power,
        power_operations::{self as operations, Done},
    },
    now,
};

/// How often the loop looks for what is due.
const TICK: Duration = Duration::from_secs(1);
/// How often it goes on patrol.
const PATROL: Duration = Duration::from_secs(30);
/// Operations at a time.
const OPERATIONS: usize = 16;
/// Tests at a time: no hurry, and devices are slow.
const TESTS: usize = 8;
/// After the operators' program failed, before it is tried again.
const TELL_AGAIN: Duration = Duration::from_secs(10);
/// How long a power cycle under way may take once the server is to stop: given up in between, it would leave a node without power.
const GRACE: Duration = Duration::from_secs(30);

/// Looks after the power of nodes until the server stops.
#[derive(Debug)]
pub(crate) struct Runner {
    power: Power,
    db: Database,
    guard: Guard,
    /// What an earlier run left in the middle, of nodes that are to have power in the end.
    interrupted: Vec<PowerOperation>,
    operations: JoinSet<()>,
    tests: JoinSet<String>,
    testing: HashSet<String>,
    telling: JoinSet<bool>,
    tell_from: Instant,
    patrol_from: Instant,
}

/// What one look at the database brings.
struct Due {
    pending: Vec<PowerOperation>,
    tests: Vec<(String, Vec<Value>)>,
    event: Option<(PowerEvent, String)>,
}

impl Runner {
    /// Takes over what an earlier run left behind. Nobody may have been served before.
    pub(crate) fn new(power: Power, db: Database) -> rusqlite::Result<Self> {
        let at = now();
        let interrupted = db.now(|db| {
            power::set_calm_since(db, at)?;
            operations::interrupted(db, at)
        })?;
        Ok(Self {
            power,
            db,
            guard: Guard::new(at),
            interrupted,
            operations: JoinSet::new(),
            tests: JoinSet::new(),
            testing: HashSet::new(),
            telling: JoinSet::new(),
            tell_from: Instant::now(),
            patrol_from: Instant::now(),
        })
    }

    /// Works until `stopping` says otherwise, then lets operations under way end.
    pub(crate) async fn run(mut self, mut stopping: watch::Receiver<bool>) {
        self.take_over();
        let mut ticks = interval(TICK);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                _ = stopping.wait_for(|stop| *stop) => break,
                () = self.power.wake.notified() => self.patrol_from = Instant::now(),
                Some(_) = self.operations.join_next() => {}
                Some(tested) = self.tests.join_next() => {
                    if let Ok(node) = tested {
                        self.testing.remove(&node);
                    }
                }
                Some(took) = self.telling.join_next() => {
                    let pause = if took.unwrap_or(false) { Duration::ZERO } else { TELL_AGAIN };
                    self.tell_from = Instant::now() + pause;
                }
                _ = ticks.tick() => {}
            }
            if let Err(error) = self.look().await {
                tracing::error!(%error, "looking after power failed");
            }
        }
        let ended = async { while self.operations.join_next().await.is_some() {} };
        if timeout(GRACE, ended).await.is_err() {
            tracing::warn!("power operations were still under way at the end");
        }
    }

    /// Ends what an earlier run had begun: it may have left nodes without power.
    fn take_over(&mut self) {
        for operation in std::mem::take(&mut self.interrupted) {
            tracing::warn!(node = operation.node, id = operation.id, "an operation was interrupted: turning on");
            let (db, power) = (self.db.clone(), self.power.clone());
            self.operations.spawn(async move {
                if let Err(error) = resume(&db, &power, &operation).await {
                    tracing::error!(%error, node = operation.node, "ending an interrupted operation failed");
                }
            });
        }
    }

    async fn look(&mut self) -> rusqlite::Result<()> {
        if Instant::now() >= self.patrol_from {
            self.patrol_from = Instant::now() + PATROL;
            self.patrol().await?;
        }
        let free = TESTS.saturating_sub(self.tests.len());
        let tell = self.telling.is_empty() && Instant::now() >= self.tell_from;
        let testing: Vec<_> = self.testing.iter().cloned().collect();
        let Due { pending, tests, event } = self.db.run(move |db| due(db, free, &testing, tell)).await?;
        for operation in pending {
            if self.operations.len() >= OPERATIONS {
                break;
            }
            let (db, power) = (self.db.clone(), self.power.clone());
            // It no longer counts as pending before the next look.
            if let Some(methods) = begin(&db, &operation).await? {
                self.operations.spawn(async move {
                    if let Err(error) = operate(&db, &power, &operation, &methods).await {
                        tracing::error!(%error, node = operation.node, id = operation.id, "a power operation was lost");
                    }
                });
            }
        }
        for (node, methods) in tests {
            self.testing.insert(node.clone());
            let (db, power) = (self.db.clone(), self.power.clone());
            self.tests.spawn(async move {
                if let Err(error) = test(&db, &power, &node, methods).await {
                    tracing::error!(%error, node, "a power test was lost");
                }
                node
            });
        }
        if let Some((event, program)) = event {
            let (db, power) = (self.db.clone(), self.power.clone());
            self.telling.spawn(async move { tell_of(&db, &power.folder, event, &program).await });
        }
        Ok(())
    }

    async fn patrol(&mut self) -> rusqlite::Result<()> {
        let (mut guard, devices) = (self.guard.clone(), self.power.devices.clone());
        self.guard = self.db.run(move |db| patrol(db, &mut guard, devices.resetting(), now()).map(|()| guard)).await?;
        Ok(())
    }
}

fn due(db: &rusqlite::Connection, free: usize, testing: &[String], tell: bool) -> rusqlite::Result<Due> {
    let now = now();
    operations::expire(db, now)?;
    let policy = power::policy(db)?;
    let tests = if free > 0 { power::tests_due(db, policy.test_every, testing, free, now)? } else { Vec::new() };
    let event = match policy.notify {
        Some(program) if tell => power::untold(db)?.map(|event| (event, program)),
        _ => None,
    };
    Ok(Due { pending: operations::that_are(db, PowerResult::Pending)?, tests, event })
}

/// Begins an operation, and says by which methods.
async fn begin(db: &Database, operation: &PowerOperation) -> rusqlite::Result<Option<Vec<Value>>> {
    let (id, node) = (operation.id, operation.node.clone());
    db.run(move |db| Ok(if operations::start(db, id, now())? { power::methods(db, &node)? } else { None })).await
}

async fn operate(db: &Database, power: &Power, operation: &PowerOperation, methods: &[Value]) -> rusqlite::Result<()> {
    let action = operation.action;
    let done = perform(power, methods, move |devices, methods| devices.perform(methods, action)).await;
    let PowerOperation { id, node, action, who, reason, .. } = operation;
    let outcome = done.outcome;
    tracing::info!(target: "audit", id, node, action = action.as_str(), who, reason, ?outcome, "power operation");
    let id = *id;
    db.run(move |db| operations::finish(db, id, &done, now())).await
}

/// Turns on what an interrupted operation may have left off, unless somebody has asked for something else since.
async fn resume(db: &Database, power: &Power, operation: &PowerOperation) -> rusqlite::Result<()> {
    let (id, node) = (operation.id, operation.node.clone());
    let methods = db.run(move |db| -> rusqlite::Result<_> {
        let last = operations::list(db, Some(&node), 1)?;
        Ok(if last.first().is_some_and(|last| last.id == id) { power::methods(db, &node)? } else { None })
    });
    let Some(methods) = methods.await? else { return Ok(()) };
    let done = perform(power, &methods, |devices, methods| devices.restore(methods)).await;
    db.run(move |db| operations::resumed(db, id, &done)).await
}

async fn perform(
    power: &Power,
    methods: &[Value],
    act: impl FnOnce(&Devices, &[Method]) -> Done + Send + 'static,
) -> Done {
    let bound = match methods::bind(&power.folder, methods) {
        Ok(bound) if bound.is_empty() => return failed("configuration", "it has no power method any more"),
        Ok(bound) => bound,
        Err(message) => return failed("configuration", &message),
    };
    let devices = power.devices.clone();
    let done = apart(move || act(&devices, &bound)).await;
    done.unwrap_or_else(|| failed("internal", "central failed; its log says why"))
}

fn failed(class: &str, message: &str) -> Done {
    let failure = PowerFailure { class: class.into(), message: message.into(), advice: String::new() };
    let attempts = vec![PowerAttempt { method: String::new(), took_ms: 0, failure: Some(failure) }];
    Done { outcome: PowerOutcome::Failed, method: None, attempts }
}

async fn test(db: &Database, power: &Power, node: &str, methods: Vec<Value>) -> rusqlite::Result<()> {
    let found = match methods::bind(&power.folder, &methods) {
        Ok(bound) => {
            let devices: Arc<Devices> = power.devices.clone();
            apart(move || devices.test(&bound)).await
        }
        Err(message) => {
            let failure = PowerFailure { class: "configuration".into(), message, advice: String::new() };
            Some(vec![PowerTest { method: String::new(), proofs: Vec::new(), failure: Some(failure) }])
        }
    };
    let failure = || PowerFailure { class: "internal".into(), message: String::new(), advice: String::new() };
    let found = found
        .unwrap_or_else(|| vec![PowerTest { method: String::new(), proofs: Vec::new(), failure: Some(failure()) }]);
    let node = node.to_owned();
    db.run(move |db| power::tested(db, &node, &methods, &found, now()).map(drop)).await
}

/// Tells the operators' program of an event. Says whether it took it.
async fn tell_of(db: &Database, folder: &Path, event: PowerEvent, program: &str) -> bool {
    let seq = event.seq;
    let took = match methods::inside(folder, program) {
        Ok(path) => apart(move || notify::tell(&path, &event).map_err(|error| error.to_string())).await,
        Err(message) => Some(Err(message)),
    };
    let took = took.unwrap_or_else(|| Err("it could not be started".to_owned()));
    if let Err(error) = &took {
        tracing::warn!(error, program, seq, "telling of a power event failed");
    }
    let took = took.is_ok();
    if let Err(error) = db.run(move |db| power::told(db, seq, took, now())).await {
        tracing::error!(%error, seq, "noting that an event was told failed");
        return false;
    }
    took
}

/// Runs `work` on a thread of its own. Other than tokio's own, the end of the program does not wait for it: a device may take
/// minutes. None when it failed.
pub(super) async fn apart<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Option<T> {
    let (send, receive) = oneshot::channel();
    // Whoever asked may be gone.
    let thread = std::thread::Builder::new().name("power".into()).spawn(move || drop(send.send(work())));
    if let Err(error) = thread {
        tracing::error!(%error, "starting a thread failed");
        return None;
    }
    receive.await.ok()
}
