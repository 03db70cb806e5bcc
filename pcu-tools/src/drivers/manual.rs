//! A person: says what has to be done, writes it down, and does not claim that it was.

use std::{
    fs,
    io::{self, Write},
    path::PathBuf,
    time::{SystemTime, UNIX_EPOCH},
};

use serde::{Deserialize, Serialize};

use crate::{Ability, Change, Deadline, Driver, Method, PcuError, PowerState, Proof, Session};

/// Asks a person. `address` says where the machine is, `outlet` which plug, `contact` whom to call.
#[derive(Debug)]
pub(super) struct Manual;

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Options {
    /// Whom to call.
    #[serde(default)]
    contact: String,
    /// A file that every request is added to, a line of JSON each.
    record: Option<PathBuf>,
}

/// One line of the record.
#[derive(Debug, Serialize)]
struct Request<'a> {
    /// Unix seconds.
    at: u64,
    change: Change,
    place: &'a str,
    outlet: Option<&'a str>,
    contact: &'a str,
}

#[derive(Debug)]
struct Person {
    place: String,
    outlet: Option<String>,
    options: Options,
}

impl Driver for Manual {
    fn name(&self) -> &'static str {
        "manual"
    }

    fn about(&self) -> &'static str {
        "a person: says and writes down what has to be done"
    }

    fn abilities(&self) -> &[Ability] {
        &[Ability::On, Ability::Off, Ability::Cycle, Ability::Reset]
    }

    fn open(&self, method: &Method, _deadline: Deadline) -> Result<Box<dyn Session>, PcuError> {
        let options = method.options()?;
        Ok(Box::new(Person { place: method.address.clone(), outlet: method.outlet.clone(), options }))
    }
}

impl Session for Person {
    fn state(&mut self, _deadline: Deadline) -> Result<PowerState, PcuError> {
        Err(PcuError::unsupported("manual", "asking whether there is power"))
    }

    fn change(&mut self, change: Change, _deadline: Deadline) -> Result<(), PcuError> {
        let instruction = self.instruction(change);
        if let Some(path) = &self.options.record {
            let doing = || format!("writing down in {} that a person has to {instruction}", path.display());
            self.write(path, change).map_err(|source| PcuError::Transport { doing: doing(), source })?;
        }
        Err(PcuError::Human { instruction })
    }

    fn prove(&mut self, _deadline: Deadline) -> Result<Vec<Proof>, PcuError> {
        if let Some(path) = &self.options.record {
            let doing = format!("opening {}", path.display());
            open(path).map_err(|source| PcuError::Transport { doing, source })?;
        }
        Ok(vec![Proof(format!("a person would be asked to {}", self.instruction(Change::Cycle)))])
    }
}

impl Person {
    fn instruction(&self, change: Change) -> String {
        let what = match change {
            Change::On => "turn it on",
            Change::Off => "turn it off",
            Change::Cycle => "turn it off, and after ten seconds on",
            Change::Reset => "press its reset button",
        };
        let plug = self.outlet.as_ref().map(|outlet| format!(", plug {outlet}")).unwrap_or_default();
        let call = match self.options.contact.as_str() {
            "" => String::new(),
            contact => format!(" (call {contact})"),
        };
        format!("go to {}{plug}, and {what}{call}", if self.place.is_empty() { "the machine" } else { &self.place })
    }

    fn write(&self, path: &PathBuf, change: Change) -> io::Result<()> {
        let at = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
        let outlet = self.outlet.as_deref();
        let request = Request { at, change, place: &self.place, outlet, contact: &self.options.contact };
        let mut line = serde_json::to_vec(&request)?;
        line.push(b'\n');
        let mut file = open(path)?;
        file.write_all(&line)?;
        file.sync_all()
    }
}

fn open(path: &PathBuf) -> io::Result<fs::File> {
    fs::File::options().append(true).create(true).open(path)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::Class;

    #[test]
    fn what_a_person_has_to_do_is_said_and_written_down() {
        let folder = tempfile::tempdir().unwrap();
        let record = folder.path().join("record");
        let mut method = Method::new("manual", "row 3, rack 2");
        method.outlet = Some("B7".into());
        method.options.insert("contact".into(), "night desk".into());
        method.options.insert("record".into(), record.display().to_string().into());
        let deadline = Deadline::after(Duration::from_secs(5));
        let mut session = Manual.open(&method, deadline).unwrap();
        session.prove(deadline).unwrap();
        assert_eq!(fs::read_to_string(&record).unwrap(), "");
        let error = session.change(Change::Reset, deadline).unwrap_err();
        assert_eq!(error.class(), Class::Human);
        assert_eq!(
            error.to_string(),
            "a person has to go to row 3, rack 2, plug B7, and press its reset button (call night desk)"
        );
        let written: serde_json::Value = serde_json::from_str(&fs::read_to_string(&record).unwrap()).unwrap();
        assert_eq!((&written["change"], &written["outlet"]), (&"reset".into(), &"B7".into()));
    }
}
