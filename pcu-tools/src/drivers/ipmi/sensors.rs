//! Walking through the records of sensors, and reading each.

use orrery_rmcp::{
    Completion, Unusable,
    sdr::{self, GetReading, GetRecord, GetRepositoryInfo, Reserve},
};

use super::link::Link;
use crate::{Deadline, PcuError, Sensor};

const DOING: &str = "reading sensors";
/// The most records that are read: more than the largest chassis has.
const RECORDS: u16 = 4096;
/// Bytes at a time, where a controller does not give a whole record: what the oldest ones send.
const PART: u8 = 16;
/// How often a record is begun anew because the repository changed meanwhile.
const ATTEMPTS: u32 = 5;

/// Reads all.
pub(super) fn read(link: &mut Link, deadline: Deadline) -> Result<Vec<Sensor>, PcuError> {
    let count = link.ask(&GetRepositoryInfo, DOING, deadline)?;
    let (mut found, mut id, mut left) = (Vec::new(), 0, count.min(RECORDS));
    // As many as it says that it has: a chain that leads back to its start ends, too.
    while id != sdr::END && left > 0 {
        let (next, record) = record(link, id, deadline)?;
        // A record that makes no sense hides no other.
        if let Ok(Some(described)) = sdr::Sensor::parse(&record) {
            found.push(reading(link, described, deadline)?);
        }
        (id, left) = (next, left - 1);
    }
    Ok(found)
}

fn reading(link: &mut Link, described: sdr::Sensor, deadline: Deadline) -> Result<Sensor, PcuError> {
    let scale = described.scale;
    let unit = scale.map_or("", |scale| scale.unit()).to_owned();
    let absent = |status: &str, name| Sensor { name, value: None, unit: unit.clone(), status: status.into() };
    if described.owner != orrery_rmcp::BMC || described.channel != 0 {
        return Ok(absent("not read: it belongs to another controller", described.name));
    }
    let request = GetReading { unit: described.unit, number: described.number };
    match link.try_ask(&request, DOING, deadline)? {
        Ok(reading) => {
            let value = scale.and_then(|scale| scale.value(reading.raw?));
            let status = described.status(reading);
            Ok(Sensor { name: described.name, value, unit, status })
        }
        // What is not plugged in has no reading.
        Err(Unusable::Refused(completion)) => Ok(absent(&format!("not read: {completion}"), described.name)),
        Err(Unusable::Malformed(malformed)) => Ok(absent(&format!("not read: {malformed}"), described.name)),
    }
}

/// A record, and the next one's number.
fn record(link: &mut Link, id: u16, deadline: Deadline) -> Result<(u16, Vec<u8>), PcuError> {
    let whole = GetRecord { reservation: 0, id, offset: 0, length: sdr::WHOLE };
    match link.try_ask(&whole, DOING, deadline)? {
        Ok(part) => return Ok((part.next, part.bytes)),
        Err(Unusable::Refused(completion)) if completion.is_too_long() => {}
        // Some want a reservation even from the start.
        Err(Unusable::Refused(Completion::RESERVATION_LOST | Completion::INVALID_FIELD)) => {}
        Err(error) => return Err(super::failure::unusable(link.doing(DOING), error)),
    }
    for _ in 0..ATTEMPTS {
        if let Some(record) = parts(link, id, deadline)? {
            return Ok(record);
        }
    }
    let detail = format!("record {id:04x}h changed {ATTEMPTS} times while it was read");
    Err(PcuError::Busy { doing: link.doing(DOING), detail })
}

/// A record, part by part; none when the reservation was lost.
fn parts(link: &mut Link, id: u16, deadline: Deadline) -> Result<Option<(u16, Vec<u8>)>, PcuError> {
    let reservation = link.ask(&Reserve, DOING, deadline)?;
    let (mut record, mut length) = (Vec::new(), sdr::RECORD_HEADER);
    loop {
        let offset = u8::try_from(record.len()).expect("a record is at most 255 bytes long");
        let request = GetRecord { reservation, id, offset, length: (length - offset).min(PART) };
        let part = match link.try_ask(&request, DOING, deadline)? {
            Ok(part) => part,
            Err(Unusable::Refused(Completion::RESERVATION_LOST)) => return Ok(None),
            Err(error) => return Err(super::failure::unusable(link.doing(DOING), error)),
        };
        if part.bytes.is_empty() {
            let detail = format!("record {id:04x}h ends after {offset} bytes");
            return Err(PcuError::BadAnswer { doing: link.doing(DOING), detail });
        }
        record.extend(part.bytes);
        if record.len() == usize::from(sdr::RECORD_HEADER) {
            let malformed = |error: orrery_rmcp::Malformed| PcuError::BadAnswer {
                doing: link.doing(DOING),
                detail: error.to_string(),
            };
            length = sdr::record_length(&record).map_err(malformed)?;
        }
        if record.len() >= length.into() {
            return Ok(Some((part.next, record)));
        }
    }
}
