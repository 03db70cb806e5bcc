//! Leads a dialogue as a script says.

use regex::bytes::Regex;

use super::{
    line::Line,
    script::{Alternative, Expect, Outcome, Say, Step, Then, compile, fill},
    text::{Plain, lines_around, printable, tail},
};
use crate::{Deadline, PcuError, PowerState, Secret};

/// Most of a device's words that are kept while an answer is waited for, in bytes. A device that says more has another menu.
const WINDOW: usize = 64 << 10;
/// Most answers within one step: a device that asks more often to press Enter lists its outlets for ever.
const PAGES: usize = 100;
/// The placeholder that is given once only in answer to the same questions.
const PASSWORD: &str = "{password}";

/// What takes the places of placeholders.
#[derive(Debug, Clone)]
pub(super) struct Words {
    pub(super) outlet: String,
    pub(super) user: Option<String>,
    pub(super) password: Option<Secret>,
}

/// A connection, and what of the device's words has no meaning yet.
pub(super) struct Dialogue {
    line: Box<dyn Line>,
    plain: Plain,
    /// ASCII, so that any match ends between characters.
    text: String,
    words: Words,
}

/// How a list of steps ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Ended {
    /// What the device said of the outlet.
    pub(super) state: Option<PowerState>,
}

/// An answer that was understood.
struct Heard {
    meaning: Outcome,
    /// The lines of the answer, for an error.
    said: String,
}

impl Dialogue {
    pub(super) fn new(line: Box<dyn Line>, words: Words) -> Self {
        Self { line, plain: Plain::default(), text: String::new(), words }
    }

    /// Takes all steps; `action` is the word for `{action}`, `doing` what errors say was tried.
    pub(super) fn run<'a>(
        &mut self,
        steps: impl IntoIterator<Item = &'a Step>,
        action: &str,
        doing: &str,
        deadline: Deadline,
    ) -> Result<Ended, PcuError> {
        let mut ended = Ended { state: None };
        for step in steps {
            match step {
                Step::Say(say) | Step::Commit(say) => self.say(say, action, None, doing, deadline)?,
                Step::Expect(expect) => {
                    let heard = self.expect(expect, action, doing, deadline)?;
                    match heard.meaning {
                        Outcome::Next => {}
                        Outcome::Done => return Ok(ended),
                        Outcome::On => ended.state = Some(PowerState::On),
                        Outcome::Off => ended.state = Some(PowerState::Off),
                        failure => return Err(self.failure(failure, heard.said, expect, doing)),
                    }
                }
            }
        }
        Ok(ended)
    }

    fn say(
        &mut self,
        say: &Say,
        action: &str,
        picked: Option<&str>,
        doing: &str,
        deadline: Deadline,
    ) -> Result<(), PcuError> {
        let words = &self.words;
        let text = fill(&say.text, |name| match name {
            "outlet" => Some(words.outlet.clone()),
            "user" => words.user.clone(),
            "password" => words.password.as_ref().map(|password| password.reveal().to_owned()),
            "action" => Some(action.to_owned()),
            "picked" => picked.map(str::to_owned),
            _ => None,
        });
        let missing = |name| PcuError::Configuration {
            doing: doing.into(),
            detail: format!("the device asks for a {name}, and the method has none"),
        };
        let text = zeroize::Zeroizing::new(text.map_err(missing)?);
        // What came before is no answer to this.
        self.text.clear();
        self.line.say(&text, say.enter, deadline, doing)
    }

    /// Waits for one of the answers. The one that ends first in the device's words counts, so that it does not matter in which
    /// pieces they come; of those that end together, the first in the file.
    fn expect(&mut self, expect: &Expect, action: &str, doing: &str, deadline: Deadline) -> Result<Heard, PcuError> {
        let patterns = self.patterns(expect, doing)?;
        let (mut pages, mut told) = (0, false);
        let mut until = deadline.at_most(expect.within);
        loop {
            while let Some((index, found)) = first(&patterns, &self.text) {
                let secrets = secrets(&self.words);
                let said = lines_around(&self.text, found.start, found.end, &secrets);
                match &expect.alternatives[index].then {
                    Then::Meaning(meaning) => {
                        self.text.drain(..found.end);
                        return Ok(Heard { meaning: *meaning, said });
                    }
                    Then::Say(_) if pages == PAGES => {
                        return Err(self.unexpected(expect, doing, &format!("{said} (for the {PAGES}th time)")));
                    }
                    // Devices count wrong passwords, and lock accounts.
                    Then::Say(say) if told && say.text.contains(PASSWORD) => {
                        return Err(self.failure(Outcome::Auth, said, expect, doing));
                    }
                    Then::Say(say) => {
                        told |= say.text.contains(PASSWORD);
                        pages += 1;
                        self.say(say, action, found.picked.as_deref(), doing, until)?;
                        until = deadline.at_most(expect.within);
                    }
                }
            }
            if self.text.len() > WINDOW {
                return Err(self.unexpected(expect, doing, &self.text));
            }
            match self.line.hear(until, doing) {
                Ok(Some(bytes)) => self.plain.take(&bytes, &mut self.text),
                Ok(None) => {
                    let said = tail(&self.text, &secrets(&self.words));
                    return match expect.closed {
                        Some(meaning) => Ok(Heard { meaning, said: or_silence(said) }),
                        None => Err(hung_up(doing, &said)),
                    };
                }
                Err(PcuError::Timeout { .. }) if !self.text.trim().is_empty() => {
                    return Err(self.unexpected(expect, doing, &self.text));
                }
                Err(error) => return Err(error),
            }
        }
    }

    fn patterns(&self, expect: &Expect, doing: &str) -> Result<Vec<Regex>, PcuError> {
        let pattern = |alternative: &Alternative| {
            let filled = fill(&alternative.pattern, |name| match name {
                "outlet" => Some(regex::escape(&self.words.outlet)),
                "user" => self.words.user.as_deref().map(regex::escape),
                _ => None,
            });
            filled.and_then(|pattern| compile(&pattern)).map_err(|detail| PcuError::Configuration {
                doing: doing.into(),
                detail: format!("the driver's pattern {}: {detail}", printable(&alternative.pattern)),
            })
        };
        expect.alternatives.iter().map(pattern).collect()
    }

    fn failure(&self, meaning: Outcome, said: String, expect: &Expect, doing: &str) -> PcuError {
        let doing = doing.to_owned();
        match meaning {
            Outcome::Auth => PcuError::Authentication { doing, detail: format!("the device said {said:?}") },
            Outcome::Busy => PcuError::Busy { doing, detail: format!("{said:?}") },
            Outcome::Privilege => PcuError::Privilege { doing, detail: format!("the device said {said:?}") },
            Outcome::OutletUnknown => {
                PcuError::OutletUnknown { doing, outlet: self.words.outlet.clone(), known: Vec::new() }
            }
            Outcome::Refused => PcuError::Refused { doing, detail: format!("{said:?}") },
            Outcome::Prompt | Outcome::Next | Outcome::Done | Outcome::On | Outcome::Off => {
                PcuError::Prompt { doing, expected: wanted(expect), said }
            }
        }
    }

    fn unexpected(&self, expect: &Expect, doing: &str, said: &str) -> PcuError {
        let said = tail(said, &secrets(&self.words));
        PcuError::Prompt { doing: doing.into(), expected: wanted(expect), said }
    }
}

struct Found {
    start: usize,
    end: usize,
    /// What the first group of the pattern matched.
    picked: Option<String>,
}

/// The match that ends first.
fn first(patterns: &[Regex], text: &str) -> Option<(usize, Found)> {
    let captures =
        patterns.iter().enumerate().filter_map(|(index, pattern)| Some((index, pattern.captures(text.as_bytes())?)));
    let found = captures.map(|(index, captures)| {
        let whole = captures.get_match();
        let picked = captures.get(1).map(|group| text[group.range()].to_owned());
        (index, Found { start: whole.start(), end: whole.end(), picked })
    });
    found.min_by_key(|(_, found)| found.end)
}

fn secrets(words: &Words) -> Vec<&str> {
    words.password.iter().map(Secret::reveal).collect()
}

/// The answers that would have been right, for people.
fn wanted(expect: &Expect) -> String {
    let right = expect.alternatives.iter().filter(|alternative| {
        matches!(
            alternative.then,
            Then::Meaning(Outcome::Next | Outcome::Done | Outcome::On | Outcome::Off) | Then::Say(_)
        )
    });
    let right: Vec<_> = right.map(|alternative| format!("/{}/", printable(&alternative.pattern))).collect();
    if right.is_empty() { "something else".into() } else { right.join(" or ") }
}

fn hung_up(doing: &str, said: &str) -> PcuError {
    let detail = match said {
        "" => "the device hung up".to_owned(),
        said => format!("the device hung up after {said:?}"),
    };
    PcuError::transport(doing, std::io::Error::new(std::io::ErrorKind::UnexpectedEof, detail))
}

fn or_silence(said: String) -> String {
    if said.is_empty() { "(it hung up without a word)".into() } else { said }
}

#[cfg(test)]
mod tests {
    use std::{collections::VecDeque, time::Duration};

    use super::*;
    use crate::{Class, drivers::menu::script::Script};

    /// A device that answers each line with the next of its pieces, and hangs up at the end of the last one.
    struct Canned {
        answers: VecDeque<Vec<Vec<u8>>>,
        now: VecDeque<Vec<u8>>,
        silent: bool,
    }

    impl Line for Canned {
        fn say(&mut self, _text: &str, _enter: bool, _deadline: Deadline, _doing: &str) -> Result<(), PcuError> {
            self.now.extend(self.answers.pop_front().unwrap_or_default());
            Ok(())
        }

        fn hear(&mut self, _deadline: Deadline, doing: &str) -> Result<Option<Vec<u8>>, PcuError> {
            match self.now.pop_front() {
                Some(bytes) => Ok(Some(bytes)),
                None if self.silent => Err(PcuError::Timeout { doing: doing.into() }),
                None => Ok(None),
            }
        }
    }

    fn script(ready: &str) -> Script {
        let text = format!(
            r#"
            transport = "ssh"
            ready = {ready}
            status = [
                {{ line = "status {{outlet}}" }},
                {{ expect = [
                    {{ at = '^{{outlet}}: On\b', then = "on" }},
                    {{ at = '^{{outlet}}: Off\b', then = "off" }},
                    {{ at = 'more\?', send = "y" }},
                    {{ at = '^> \z', then = "outlet-unknown" }},
                ] }},
            ]
            on = [{{ line = "on", commit = true }}]
            off = [{{ line = "off", commit = true }}]
            "#
        );
        toml::from_str(&text).unwrap()
    }

    /// Leads `steps` with a device that says `answers`, each cut into pieces of `cut` bytes.
    fn lead(steps: &[Step], answers: &[&str], cut: usize, silent: bool) -> Result<Ended, PcuError> {
        let pieces = |answer: &&str| answer.as_bytes().chunks(cut).map(<[u8]>::to_vec).collect();
        let canned = Canned { answers: answers.iter().map(pieces).collect(), now: VecDeque::new(), silent };
        let words =
            Words { outlet: "1.2".into(), user: Some("op".into()), password: Some(Secret::new("sesame".into())) };
        let deadline = Deadline::after(Duration::from_secs(5));
        Dialogue::new(Box::new(canned), words).run(steps, "status", "asking", deadline)
    }

    #[test]
    fn the_answer_does_not_depend_on_the_pieces() {
        let script = script("[]");
        let check = |answers: &[&str], expected: Result<PowerState, Class>| {
            for cut in [1, 2, 3, 7, 1000] {
                let ended = lead(&script.status, answers, cut, false);
                let found = ended.map(|ended| ended.state.unwrap()).map_err(|error| error.class());
                assert_eq!(found, expected, "{answers:?} cut every {cut}");
            }
        };
        check(&["status 1.2\r\n1: Off\r\n\x1b[1m1.2: On\x1b[0m\r\n1.2: Off\r\n> "], Ok(PowerState::On));
        check(&["1.2: Off\r\n> "], Ok(PowerState::Off));
        // The outlet is not a pattern.
        check(&["1x2: Off\r\n> "], Err(Class::OutletUnknown));
        check(&["1: On\r\nmore?", "y\r\n1.2: Off\r\n> "], Ok(PowerState::Off));
        check(&["nothing\r\n"], Err(Class::Transport));
    }

    #[test]
    fn what_a_device_says_is_bounded_and_told_without_the_password() {
        let script = script(
            r#"[{ line = "{password}" }, { expect = [{ at = '^> \z' }, { at = 'again', line = "{password}" }, { at = 'go on', line = "" }] }]"#,
        );
        let check = |answers: &[&str], silent: bool, class: Class, told: &str| {
            let error = lead(&script.ready, answers, 4096, silent).unwrap_err();
            assert_eq!(error.class(), class, "{error}");
            assert!(error.to_string().contains(told), "{error}");
            assert!(!format!("{error:?}").contains("esam"), "{error:?}");
            assert!(error.to_string().len() < 1000, "{}", error.to_string().len());
        };
        check(&[""], true, Class::Timeout, "asking: timed out");
        check(&["sesame is wrong\r\n"], true, Class::Prompt, "the device said \"*** is wrong\"");
        check(&["wrong: sesam"], true, Class::Prompt, "wrong: ***");
        check(&["bye, sesame"], false, Class::Transport, "the device hung up after \"bye, ***\"");
        check(&[&"garbage ".repeat(20_000)], false, Class::Prompt, "expected /^> \\z/");
        // The password is told twice: by the script, and once in answer.
        check(&["sesame? again\r\n", "again\r\n", "again\r\n"], false, Class::Authentication, "again");
        let pages = vec!["go on"; 1000];
        check(&pages, false, Class::Prompt, "for the 100th time");
    }

    #[test]
    fn answers_have_their_classes() {
        let check = |then: &str, class: Class| {
            let script = script(&format!(r#"[{{ line = "x" }}, {{ expect = [{{ at = 'no\b', then = "{then}" }}] }}]"#));
            let error = lead(&script.ready, &["well\r\nno, op\r\n"], 100, false).unwrap_err();
            assert_eq!(error.class(), class, "{then}");
        };
        check("auth", Class::Authentication);
        check("busy", Class::Busy);
        check("privilege", Class::Privilege);
        check("outlet-unknown", Class::OutletUnknown);
        check("refused", Class::Refused);
        check("prompt", Class::Prompt);
        let script = script(r#"[{ expect = [], closed = "busy" }]"#);
        assert_eq!(lead(&script.ready, &[], 1, false).unwrap_err().class(), Class::Busy);
        assert_eq!(lead(&script.ready, &[], 1, true).unwrap_err().class(), Class::Timeout);
    }
}
