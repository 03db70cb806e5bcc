//! Runs the node's processes, gives them operations, interrupts them, and has everything checked.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    io::{BufRead, BufReader, Write},
    os::{fd::OwnedFd, unix::net::UnixStream},
    process::{Command, Stdio},
    sync::mpsc::{self, Receiver, RecvTimeoutError, Sender},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use orrery_init_api::NODE_CGROUP;
use orrery_protocol::Digest;
use orrery_sys::spawn::Preparations;
use rustix::process::{Pid, Signal, WaitOptions, kill_process, wait, waitpid};

use crate::{
    check::{self, Baseline},
    machine::{self, Task, say},
    model::{Event, Hit, Model},
    operations::{Lane, Op, Random, Role, content, draw},
    worker::{Answer, Order},
};

/// What the processes print goes here, and is shown when something fails.
pub(crate) const LOG: &str = "/run/torture.log";
/// Nothing takes this long, even emulated on a busy machine.
const PATIENCE: Duration = Duration::from_secs(90);
/// How long an operation takes that has not been measured yet.
const TYPICAL: Duration = Duration::from_millis(150);

/// A process of the node.
struct Process {
    pid: Pid,
    line: UnixStream,
}

/// What processes say.
enum Said {
    Answer(Role, Answer),
    /// It has said all it ever will.
    Ended(Role),
}

struct Driver {
    model: Model,
    random: Random,
    processes: BTreeMap<Role, Process>,
    ready: BTreeSet<Role>,
    sender: Sender<Said>,
    said: Receiver<Said>,
    baseline: Baseline,
    /// When the operations under way began, and what a read has to find.
    begun: BTreeMap<Lane, (Instant, Vec<u32>)>,
    /// What an operation took last, by its name.
    took: BTreeMap<&'static str, Duration>,
    /// What it took last until both processes were up.
    start_took: Duration,
}

/// One boot of the machine.
pub(crate) fn run() -> Result<()> {
    machine::prepare()?;
    let outcome = boot(&Task::read()?);
    if outcome.is_err() {
        for line in fs::read_to_string(LOG).unwrap_or_default().lines() {
            say(&format!("    {line}"))?;
        }
    }
    outcome
}

fn boot(task: &Task) -> Result<()> {
    let events = machine::ledger()?;
    let events: Vec<Event> =
        events.lines().map(serde_json::from_str).collect::<Result<_, _>>().context("reading the ledger")?;
    let (sender, said) = mpsc::channel();
    let mut driver = Driver {
        model: Model::replay(&events)?,
        // Another stream for every boot.
        random: Random(Random(task.seed ^ task.boot.wrapping_mul(0xd134_2543_de82_ef95)).next()),
        processes: BTreeMap::new(),
        ready: BTreeSet::new(),
        sender,
        said,
        baseline: Baseline::take()?,
        begun: BTreeMap::new(),
        took: BTreeMap::new(),
        start_took: Duration::from_millis(500),
    };
    if events.is_empty() {
        driver.note(Event::Images(machine::make_images()?))?;
    } else {
        driver.note(Event::Hit(Hit::Power))?;
    }
    for _ in 0..task.kills {
        let hit = driver.draw_hit();
        driver.approach(hit)?;
        driver.hit(hit)?;
    }
    if task.cut {
        driver.approach(Hit::Power)?;
        say("CUT")?;
        driver.work(Instant::now() + PATIENCE)?;
        bail!("nobody cut the power");
    }
    driver.settle()?;
    check::images()
}

impl Driver {
    /// Takes note of an event, which counts from then on, whatever happens.
    fn note(&mut self, event: Event) -> Result<()> {
        self.model.apply(&event)?;
        say(&format!("LEDGER {}", serde_json::to_string(&event)?))
    }

    fn draw_hit(&mut self) -> Hit {
        [Hit::Manager, Hit::Manager, Hit::Node, Hit::Gate][self.random.below(4)]
    }

    /// Gets to the next instant to hit at: at some part of what an operation that this interrupts usually takes. One in five is on
    /// the way up; what was hit before is then checked with it.
    fn approach(&mut self, hit: Hit) -> Result<()> {
        let (starting, part) = (self.random.below(5) == 0, self.random.fraction());
        let mut operations = self.random.below(8);
        // Of what can be interrupted, the most there is to go wrong in.
        let target = match hit {
            Hit::Gate => [Lane::Session, Lane::OtherSession, Lane::Session],
            Hit::Manager | Hit::Node | Hit::Power => [Lane::Wishes, Lane::Wishes, Lane::Store],
        }[self.random.below(3)];
        if starting && self.processes.len() < 2 {
            self.start()?;
            return self.wait_until(Instant::now() + self.start_took.mul_f64(part));
        }
        self.settle()?;
        loop {
            let (lane, name) = self.begin_one()?;
            if operations == 0 && lane == target {
                let usual = self.took.get(name).copied().unwrap_or(TYPICAL);
                // What follows right after an acknowledgement is included.
                return self.work(Instant::now() + usual.mul_f64(1.2 * part));
            }
            operations = operations.saturating_sub(1);
        }
    }

    /// Starts what does not run.
    fn start(&mut self) -> Result<()> {
        for role in [Role::Manager, Role::Gate] {
            if !self.processes.contains_key(&role) {
                let process = spawn(role, self.sender.clone())?;
                self.processes.insert(role, process);
            }
        }
        Ok(())
    }

    /// Has everything up and quiet, and checks it.
    fn settle(&mut self) -> Result<()> {
        let started = Instant::now();
        let fresh = self.processes.is_empty();
        self.start()?;
        while self.ready.len() < 2 {
            self.hear(started + PATIENCE)?;
        }
        if fresh {
            self.start_took = started.elapsed();
        }
        // Whoever is in a suspended sliver stays there.
        while Lane::ALL.iter().any(|lane| self.model.pending.contains_key(lane) && !self.model.is_frozen(*lane)) {
            self.hear(started + PATIENCE)?;
        }
        let checked = Instant::now();
        let own: Vec<Pid> = self.processes.values().map(|process| process.pid).collect();
        check::everything(&self.model, &self.baseline, &own, reap)?;
        for (hit, under_way) in &self.model.unchecked {
            let run = serde_json::json!({
                "hit": hit, "under_way": under_way,
                "up_ms": (checked - started).as_millis(), "check_ms": checked.elapsed().as_millis(),
            });
            say(&format!("RUN {run}"))?;
        }
        self.note(Event::Checked)
    }

    /// Gives one of the free lanes something to do, once there is one that can do something.
    fn begin_one(&mut self) -> Result<(Lane, &'static str)> {
        loop {
            let free = Lane::ALL.into_iter().filter(|lane| !self.model.pending.contains_key(lane));
            let free: Vec<_> =
                free.filter_map(|lane| Some((lane, draw(lane, &self.model, &mut self.random)?))).collect();
            if free.is_empty() {
                self.hear(Instant::now() + PATIENCE)?;
                continue;
            }
            let (lane, op) = free[self.random.below(free.len())].clone();
            return Ok((lane, self.begin(lane, op)?));
        }
    }

    fn begin(&mut self, lane: Lane, op: Op) -> Result<&'static str> {
        let name = op.name();
        self.note(Event::Begin(lane, op.clone()))?;
        let sure = op.slot().map(|slot| self.model.sure_files(slot)).unwrap_or_default();
        self.begun.insert(lane, (Instant::now(), sure));
        let process = self.processes.get_mut(&lane.role()).context("a process is missing")?;
        let order = Order { lane, op, images: self.model.images.clone() };
        let text = serde_json::to_string(&order)? + "\n";
        process.line.write_all(text.as_bytes()).with_context(|| format!("giving {name} to {lane:?}"))?;
        Ok(name)
    }

    /// Keeps all lanes busy until then, but those whose process is on its way up: what became of its last wish is not known yet.
    fn work(&mut self, until: Instant) -> Result<()> {
        while Instant::now() < until {
            for lane in Lane::ALL {
                if self.ready.contains(&lane.role())
                    && !self.model.pending.contains_key(&lane)
                    && let Some(op) = draw(lane, &self.model, &mut self.random)
                {
                    self.begin(lane, op)?;
                }
            }
            self.hear_one(until)?;
        }
        Ok(())
    }

    /// Lets things happen until then.
    fn wait_until(&mut self, until: Instant) -> Result<()> {
        while Instant::now() < until {
            self.hear_one(until)?;
        }
        Ok(())
    }

    /// Hears the next thing said, which must be before then.
    fn hear(&mut self, deadline: Instant) -> Result<()> {
        ensure!(self.hear_one(deadline)?, "nothing happens any more; under way are {:?}", self.model.pending);
        Ok(())
    }

    /// Hears the next thing said before `until`, and takes note of it. Returns whether there was something.
    fn hear_one(&mut self, until: Instant) -> Result<bool> {
        match self.said.recv_timeout(until.saturating_duration_since(Instant::now())) {
            Ok(Said::Answer(role, answer)) => self.understand(role, answer)?,
            Ok(Said::Ended(role)) => bail!("the {} ended by itself", role.word()),
            Err(RecvTimeoutError::Timeout) => return Ok(false),
            Err(RecvTimeoutError::Disconnected) => bail!("nobody is left to say anything"),
        }
        Ok(true)
    }

    fn understand(&mut self, role: Role, answer: Answer) -> Result<()> {
        match answer {
            Answer::Ready(wanted) => {
                if let Some(wanted) = wanted
                    && let Some(fate) = self.model.fate(&wanted)?
                {
                    self.note(Event::Settled(fate))?;
                }
                self.ready.insert(role);
            }
            Answer::Done(lane, read) => {
                self.read(lane, &read)?;
                if let (Some((begun, _)), Some(pending)) = (self.begun.remove(&lane), self.model.pending.get(&lane)) {
                    self.took.insert(pending.op.name(), begun.elapsed());
                }
                self.note(Event::Done(lane))?;
            }
            Answer::Failed(lane, why) => {
                let session = lane.role() == Role::Gate;
                ensure!(session, "{:?} failed: {why}", self.model.pending.get(&lane).map(|pending| &pending.op));
                self.note(Event::Refused(lane)).context(why)?;
            }
        }
        Ok(())
    }

    /// What a session read has to be there.
    fn read(&self, lane: Lane, read: &BTreeMap<u32, Digest>) -> Result<()> {
        let Some(pending) = self.model.pending.get(&lane) else { return Ok(()) };
        let (Op::Read { slot }, false) = (&pending.op, pending.disturbed) else { return Ok(()) };
        let sure = self.begun.get(&lane).map(|(_, sure)| sure.as_slice()).unwrap_or_default();
        for number in sure {
            let good = read.get(number) == Some(&Digest::of(&content(*number)));
            ensure!(good, "file {number} of sliver {slot} is damaged or missing for who reads it inside");
        }
        let unknown = read.keys().find(|number| !self.model.files[*slot].contains_key(number));
        ensure!(unknown.is_none(), "file {unknown:?} of sliver {slot} should be gone for who reads it inside");
        Ok(())
    }

    /// Kills, and takes note of what was said before.
    fn hit(&mut self, hit: Hit) -> Result<()> {
        if hit == Hit::Node {
            fs::write(format!("{NODE_CGROUP}/cgroup.kill"), "1").context("killing everything of the node")?;
        }
        let hit_ones: Vec<Role> = self.processes.keys().copied().filter(|role| hit.ends(*role)).collect();
        for role in &hit_ones {
            let pid = self.processes[role].pid;
            kill_process(pid, Signal::KILL).with_context(|| format!("killing the {}", role.word()))?;
        }
        for role in &hit_ones {
            let Some(process) = self.processes.remove(role) else { continue };
            self.ready.remove(role);
            waitpid(Some(process.pid), WaitOptions::empty()).context("waiting for what was killed")?;
        }
        let mut left = hit_ones.len();
        while left > 0 {
            match self.said.recv_timeout(PATIENCE).context("waiting for the end of what was killed")? {
                // Acknowledged before it was hit. What the other one says is as good as ever.
                Said::Answer(role, answer) => self.understand(role, answer)?,
                Said::Ended(role) if hit.ends(role) => left -= 1,
                Said::Ended(role) => bail!("the {} ended by itself", role.word()),
            }
        }
        self.ready.retain(|role| !hit.ends(*role));
        self.begun.retain(|lane, _| !hit.ends(lane.role()));
        self.note(Event::Hit(hit))
    }
}

/// Reaps what this process inherited from whoever was killed.
fn reap() {
    while let Ok(Some(_)) = wait(WaitOptions::NOHANG) {}
}

/// Starts a process of the node, in the node's control group, as its init does.
fn spawn(role: Role, sender: Sender<Said>) -> Result<Process> {
    let (ours, theirs) = UnixStream::pair().context("making a line")?;
    let log = fs::File::options().create(true).append(true).open(LOG).context("opening the log")?;
    let mut command = Command::new("/proc/self/exe");
    command.arg(role.word()).stdin(Stdio::from(OwnedFd::from(theirs))).stdout(log.try_clone()?).stderr(log);
    Preparations::new().write(&format!("{NODE_CGROUP}/cgroup.procs"), b"0")?.apply(&mut command);
    let child = command.spawn().with_context(|| format!("starting the {}", role.word()))?;
    drop(command);
    let answers = BufReader::new(ours.try_clone()?);
    thread::spawn(move || {
        for line in answers.lines().map_while(Result::ok) {
            if let Ok(answer) = serde_json::from_str(&line)
                && sender.send(Said::Answer(role, answer)).is_err()
            {
                return;
            }
        }
        let _ = sender.send(Said::Ended(role));
    });
    Ok(Process { pid: Pid::from_child(&child), line: ours })
}
