//! The machine's serial line, over the session.

use std::time::{Duration, Instant};

use orrery_rmcp::{
    Unusable,
    command::{ActivateSol, DeactivateSol, GetDeviceId},
    sol::{Line, LineError},
};

use super::{failure, link::Link};
use crate::{Console, Deadline, PcuError};

const DOING: &str = "using the serial line";
/// How often the session is shown to be in use; controllers end idle ones after a minute.
const KEEP_ALIVE: Duration = Duration::from_secs(15);
/// How long giving the line back may take.
const GOODBYE: Duration = Duration::from_secs(1);
/// How many bytes one exchange returns at most, about.
const ENOUGH: usize = 16 << 10;

/// A serial line that is ours. Dropping it gives it back, and ends the session.
#[derive(Debug)]
pub(super) struct SerialLine {
    link: Link,
    line: Line,
    alive: Instant,
}

impl SerialLine {
    /// Takes the line.
    pub(super) fn open(mut link: Link, deadline: Deadline) -> Result<Self, PcuError> {
        let doing = link.doing("opening the serial line");
        if !link.is_encrypted() {
            return Err(PcuError::Unsupported { doing, detail: "there is no serial over LAN in IPMI 1.5".into() });
        }
        let inbound = match link.try_ask(&ActivateSol, "opening the serial line", deadline)? {
            Ok(inbound) => inbound,
            Err(Unusable::Refused(code)) if ActivateSol::TAKEN.contains(&code) => {
                return Err(PcuError::Busy { doing, detail: "somebody else has the serial line".into() });
            }
            Err(Unusable::Refused(ActivateSol::DISABLED)) => {
                let detail = "serial over LAN is disabled in the device's configuration".into();
                return Err(PcuError::Unsupported { doing, detail });
            }
            Err(Unusable::Refused(ActivateSol::NOT_ENCRYPTED)) => {
                let detail = "the device does not encrypt serial over LAN".into();
                return Err(PcuError::Unsupported { doing, detail });
            }
            Err(error) => return Err(failure::unusable(doing, error)),
        };
        Ok(Self { link, line: Line::new(inbound), alive: Instant::now() })
    }

    fn lost(&self, error: LineError) -> PcuError {
        let (doing, detail) = (self.link.doing(DOING), error.to_string());
        match error {
            LineError::Deactivated => PcuError::Refused { doing, detail },
            LineError::Unacknowledged => PcuError::Timeout { doing: format!("{doing}: {detail}") },
            LineError::Full => PcuError::Busy { doing, detail },
        }
    }
}

impl Console for SerialLine {
    fn exchange(&mut self, input: &[u8], wait: Duration) -> Result<Vec<u8>, PcuError> {
        let until = Instant::now() + wait;
        self.line.write(input).map_err(|error| self.lost(error))?;
        let mut output = Vec::new();
        loop {
            let now = Instant::now();
            if now.duration_since(self.alive) > KEEP_ALIVE {
                self.alive = now;
                self.link.keep_alive(&GetDeviceId);
            }
            while let Some(packet) = self.line.send(now).map_err(|error| self.lost(error))? {
                self.link.send_sol(&packet, DOING)?;
            }
            // What came is worth more than what may come; it was acknowledged above.
            if now >= until || !output.is_empty() && self.line.is_idle() || output.len() > ENOUGH {
                return Ok(output);
            }
            let next = self.line.next().map_or(until, |next| next.min(until));
            if let Some(packet) = self.link.hear_sol(next, DOING)? {
                match self.line.receive(&packet, Instant::now()) {
                    Ok(characters) => output.extend(characters),
                    // The next call says it.
                    Err(_) if !output.is_empty() => return Ok(output),
                    Err(error) => return Err(self.lost(error)),
                }
            }
        }
    }
}

impl Drop for SerialLine {
    fn drop(&mut self) {
        // The device takes it back when the session ends, if not now.
        let _ = self.link.try_ask(&DeactivateSol, "closing the serial line", Deadline::after(GOODBYE));
    }
}
