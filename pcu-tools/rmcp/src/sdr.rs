//! Sensors: the records that describe them (33, 43), their readings (35.14), and what a reading means (36.3).

use crate::{Malformed, Request, bytes::Reader, command::SENSOR, command::STORAGE};

/// The number that stands for "none after this one".
pub const END: u16 = 0xffff;
/// Bytes before a record's own fields: number, version, type, length.
pub const RECORD_HEADER: u8 = 5;
/// "All of it".
pub const WHOLE: u8 = 0xff;

/// Get SDR Repository Info (33.9).
#[derive(Debug, Clone, Copy)]
pub struct GetRepositoryInfo;

/// Reserve SDR Repository (33.11): so that records do not change between two parts of one.
#[derive(Debug, Clone, Copy)]
pub struct Reserve;

/// Get SDR (33.12), a part of it.
#[derive(Debug, Clone, Copy)]
pub struct GetRecord {
    /// The reservation; not needed from the start of a record.
    pub reservation: u16,
    /// Which; 0 is the first.
    pub id: u16,
    /// From where.
    pub offset: u8,
    /// How much, or [`WHOLE`].
    pub length: u8,
}

/// A part of a record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Part {
    /// The next record's number, or [`END`].
    pub next: u16,
    /// The part.
    pub bytes: Vec<u8>,
}

/// Get Sensor Reading (35.14).
#[derive(Debug, Clone, Copy)]
pub struct GetReading {
    /// The unit of the controller that owns it.
    pub unit: u8,
    /// The sensor's number.
    pub number: u8,
}

/// A reading.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reading {
    /// The raw value; none while the sensor has none.
    pub raw: Option<u8>,
    /// Its states: of a sensor with thresholds, which it has passed.
    pub states: u16,
}

/// A sensor, as its record describes it.
#[derive(Debug, Clone, PartialEq)]
pub struct Sensor {
    /// Its name.
    pub name: String,
    /// The controller that it belongs to.
    pub owner: u8,
    /// The unit of that controller.
    pub unit: u8,
    /// The controller's channel.
    pub channel: u8,
    /// Its number there.
    pub number: u8,
    /// Of what kind it is (table 42-3).
    pub kind: u8,
    /// What its states are: 1 for thresholds.
    pub event_type: u8,
    /// How a raw value becomes one of a unit; none when it has only states.
    pub scale: Option<Scale>,
}

/// How a raw value becomes one of a unit.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Scale {
    format: Format,
    /// M and B.
    factors: (i16, i16),
    /// The exponents of the result and of B.
    exponents: (i8, i8),
    linearization: u8,
    percentage: bool,
    base_unit: u8,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Format {
    Unsigned,
    OnesComplement,
    TwosComplement,
}

impl Request for GetRepositoryInfo {
    const FUNCTION: u8 = STORAGE;
    const COMMAND: u8 = 0x20;
    /// How many records there are.
    type Answer = u16;

    fn data(&self) -> Vec<u8> {
        Vec::new()
    }

    fn parse(&self, data: &[u8]) -> Result<u16, Malformed> {
        let mut reader = Reader::new(data);
        let _version = reader.u8()?;
        reader.u16()
    }
}

impl Request for Reserve {
    const FUNCTION: u8 = STORAGE;
    const COMMAND: u8 = 0x22;
    type Answer = u16;

    fn data(&self) -> Vec<u8> {
        Vec::new()
    }

    fn parse(&self, data: &[u8]) -> Result<u16, Malformed> {
        Reader::new(data).u16()
    }
}

impl Request for GetRecord {
    const FUNCTION: u8 = STORAGE;
    const COMMAND: u8 = 0x23;
    type Answer = Part;

    fn data(&self) -> Vec<u8> {
        let mut data = self.reservation.to_le_bytes().to_vec();
        data.extend(self.id.to_le_bytes());
        data.extend([self.offset, self.length]);
        data
    }

    fn parse(&self, data: &[u8]) -> Result<Part, Malformed> {
        let mut reader = Reader::new(data);
        let next = reader.u16()?;
        if self.length != WHOLE && reader.rest().len() > self.length.into() {
            return Err(Malformed("it gives more of a record than was asked for"));
        }
        Ok(Part { next, bytes: reader.rest().to_vec() })
    }
}

impl Request for GetReading {
    const FUNCTION: u8 = SENSOR;
    const COMMAND: u8 = 0x2d;
    type Answer = Reading;

    fn data(&self) -> Vec<u8> {
        vec![self.number]
    }

    fn parse(&self, data: &[u8]) -> Result<Reading, Malformed> {
        let mut reader = Reader::new(data);
        let [raw, flags] = reader.array()?;
        // Not scanned, or not available now.
        let valid = flags & 0x40 != 0 && flags & 0x20 == 0;
        let states = match *reader.rest() {
            [] => 0,
            [low] => u16::from(low),
            // The highest bit is reserved and reads as one.
            [low, high, ..] => u16::from_le_bytes([low, high & 0x7f]),
        };
        Ok(Reading { raw: Some(raw).filter(|_| valid), states })
    }

    fn unit(&self) -> u8 {
        self.unit
    }
}

/// How long a record is, of its first five bytes.
///
/// # Errors
/// When there are fewer.
pub fn record_length(header: &[u8]) -> Result<u8, Malformed> {
    let [_, _, _, _, length] = Reader::new(header).array()?;
    length.checked_add(RECORD_HEADER).ok_or(Malformed("a record is longer than 255 bytes"))
}

impl Sensor {
    /// Reads a record; none when it describes something else than a sensor that can be read.
    ///
    /// # Errors
    /// When it is short.
    pub fn parse(record: &[u8]) -> Result<Option<Self>, Malformed> {
        let mut reader = Reader::new(record);
        let [_, _, _, record_type, length] = reader.array()?;
        let mut fields = Reader::new(reader.take(length.into())?);
        let full = match record_type {
            1 => true,
            2 => false,
            _ => return Ok(None),
        };
        let [owner, unit, number, _, _, _, _, kind, event_type] = fields.array()?;
        let _masks: [u8; 6] = fields.array()?;
        let [units, base_unit, _] = fields.array()?;
        let scale = if full { read_scale(&mut fields, units, base_unit)? } else { fields.take(8).map(|_| None)? };
        let name = read_name(fields)?;
        Ok(Some(Self { name, owner, unit: unit & 3, channel: unit >> 4, number, kind, event_type, scale }))
    }

    /// What a reading says, for people: `ok`, or the worst threshold that it has passed, or the states.
    #[must_use]
    pub fn status(&self, reading: Reading) -> String {
        const THRESHOLDS: [(u16, &str); 3] = [(0x24, "non-recoverable"), (0x12, "critical"), (0x09, "non-critical")];
        if reading.raw.is_none() {
            return "no reading".into();
        }
        if self.event_type == 1 {
            let passed = THRESHOLDS.iter().find(|(bits, _)| reading.states & bits != 0);
            return passed.map_or("ok", |(_, name)| name).into();
        }
        format!("states {:04x}h", reading.states)
    }
}

impl Scale {
    /// The value of a raw one; none where it has none.
    #[must_use]
    pub fn value(&self, raw: u8) -> Option<f64> {
        let raw = match self.format {
            Format::Unsigned => f64::from(raw),
            // Zero has two forms: all bits zero, all bits one.
            Format::OnesComplement if raw & 0x80 != 0 => -f64::from(!raw),
            Format::OnesComplement => f64::from(raw),
            Format::TwosComplement => f64::from(raw.cast_signed()),
        };
        let (m, b) = (f64::from(self.factors.0), f64::from(self.factors.1));
        let power = |exponent: i8| 10f64.powi(exponent.into());
        let linear = (m * raw + b * power(self.exponents.1)) * power(self.exponents.0);
        let value = match self.linearization & 0x7f {
            0 => linear,
            1 => linear.ln(),
            2 => linear.log10(),
            3 => linear.log2(),
            4 => linear.exp(),
            5 => 10f64.powf(linear),
            6 => linear.exp2(),
            7 => linear.recip(),
            8 => linear.powi(2),
            9 => linear.powi(3),
            10 => linear.sqrt(),
            11 => linear.cbrt(),
            // Its factors differ from reading to reading.
            _ => return None,
        };
        value.is_finite().then_some(value)
    }

    /// The unit (table 43-15), where it is one that sensors of machines have.
    #[must_use]
    pub fn unit(&self) -> &'static str {
        if self.percentage {
            return "%";
        }
        match self.base_unit {
            1 => "°C",
            2 => "°F",
            3 => "K",
            4 => "V",
            5 => "A",
            6 => "W",
            7 => "J",
            9 => "VA",
            17 => "CFM",
            18 => "rpm",
            19 => "Hz",
            22 => "s",
            _ => "",
        }
    }
}

/// The fields of a full record from its linearization to its name.
fn read_scale(fields: &mut Reader<'_>, units: u8, base_unit: u8) -> Result<Option<Scale>, Malformed> {
    let [linearization, m, m_high, b, b_high, _, exponents] = fields.array()?;
    let _rest: [u8; 17] = fields.array()?;
    let format = match units >> 6 {
        0 => Format::Unsigned,
        1 => Format::OnesComplement,
        2 => Format::TwosComplement,
        _ => return Ok(None),
    };
    // Ten bits and four bits, with a sign.
    let ten = |low: u8, high: u8| i16::from_be_bytes([high & 0xc0 | low >> 2, low << 6]) >> 6;
    let four = |nibble: u8| (nibble << 4).cast_signed() >> 4;
    Ok(Some(Scale {
        format,
        factors: (ten(m, m_high), ten(b, b_high)),
        exponents: (four(exponents >> 4), four(exponents & 15)),
        linearization,
        percentage: units & 1 != 0,
        base_unit,
    }))
}

/// A name with its type and length (43.15), made printable.
fn read_name(mut fields: Reader<'_>) -> Result<String, Malformed> {
    const BCD_PLUS: &[u8; 16] = b"0123456789 -.:,_";
    let kind = fields.u8()?;
    // Some records say that their name is longer than they are.
    let bytes = fields.rest();
    let bytes = &bytes[..bytes.len().min(usize::from(kind & 0x1f))];
    let name: String = match kind >> 6 {
        0 => String::from_utf8_lossy(bytes).into_owned(),
        1 => bytes
            .iter()
            .flat_map(|byte| [byte >> 4, byte & 15])
            .map(|four| char::from(BCD_PLUS[usize::from(four)]))
            .collect(),
        2 => six_bits(bytes),
        // Latin-1.
        _ => bytes.iter().map(|byte| char::from(*byte)).collect(),
    };
    Ok(name.trim_matches(['\0', ' ']).chars().map(|char| if char.is_control() { '.' } else { char }).collect())
}

/// Packed ASCII: four characters from a blank on in three bytes.
fn six_bits(bytes: &[u8]) -> String {
    let bits = |at: usize| bytes.get(at / 8).map_or(0, |byte| u16::from(*byte)) >> (at % 8);
    (0..bytes.len() * 8 / 6)
        .map(|character| {
            let at = character * 6;
            let next = bytes.get(at / 8 + 1).map_or(0, |byte| u16::from(*byte)) << (8 - at % 8);
            char::from(u8::try_from((bits(at) | next) & 0x3f).expect("six bits") + b' ')
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn scale(units: u8, fields: [u8; 7]) -> Scale {
        let bytes = [&fields[..], &[0; 17]].concat();
        read_scale(&mut Reader::new(&bytes), units, 1).unwrap().unwrap()
    }

    #[test]
    fn readings_become_values() {
        let check = |units, fields, raw, expected: f64| {
            let value = scale(units, fields).value(raw).unwrap();
            assert!((value - expected).abs() < 1e-9, "{value} is not {expected}");
        };
        check(0x00, [0, 1, 0, 0, 0, 0, 0], 0x60, 96.0);
        // 3.3 V of a usual voltage record: M 17, exponent -3.
        check(0x00, [0, 17, 0, 0, 0, 0, 0xd0], 194, 3.298);
        // M 100 of a fan; B -1 and its exponent 1.
        check(0x00, [0, 100, 0, 0xff, 0xc0, 0, 0x01], 20, 1990.0);
        check(0x80, [0, 1, 0, 0, 0, 0, 0], 0xf6, -10.0);
        check(0x40, [0, 1, 0, 0, 0, 0, 0], 0xf5, -10.0);
        check(0x40, [0, 1, 0, 0, 0, 0, 0], 0xff, 0.0);
        check(0x00, [7, 2, 0, 0, 0, 0, 0], 2, 0.25);
        check(0x00, [0, 0, 0x40, 0, 0, 0, 0], 1, 256.0);
        assert_eq!(scale(0, [7, 1, 0, 0, 0, 0, 0]).value(0), None);
        assert_eq!(scale(0, [0x70, 1, 0, 0, 0, 0, 0]).value(1), None);
        assert_eq!(scale(1, [0; 7]).unit(), "%");
    }

    #[test]
    fn a_full_and_a_compact_record() {
        let full = "0000510131 200001 0301678801 01 c00fc07f3838 000100 00 0100 0000 0000 \
                    03 60b000 b000 a09070 000000 0000 0000 00 c6 444a74656d70";
        let bytes = hex::decode(full.replace(' ', "")).unwrap();
        let mut record = bytes.clone();
        record[4] = u8::try_from(bytes.len() - 5).unwrap();
        let sensor = Sensor::parse(&record).unwrap().unwrap();
        assert_eq!((sensor.name.as_str(), sensor.owner, sensor.number, sensor.kind), ("DJtemp", 0x20, 1, 1));
        assert_eq!(sensor.scale.unwrap().value(0x60), Some(96.0));
        assert_eq!(sensor.scale.unwrap().unit(), "°C");
        let status = |raw, states| sensor.status(Reading { raw, states });
        assert_eq!([status(None, 0), status(Some(1), 0), status(Some(1), 0x18)], ["no reading", "ok", "critical"]);
        for end in 0..record.len() {
            assert!(Sensor::parse(&record[..end]).is_err());
        }
        let compact = "0200510221 200107 0a01 0040 096f ffff ffff ffff c00000 0000 0000 000000 00 c3 505331";
        let mut record = hex::decode(compact.replace(' ', "")).unwrap();
        record[4] = u8::try_from(record.len() - 5).unwrap();
        let sensor = Sensor::parse(&record).unwrap().unwrap();
        assert_eq!((sensor.name.as_str(), sensor.unit, sensor.number, sensor.scale), ("PS1", 1, 7, None));
        assert_eq!(sensor.status(Reading { raw: Some(0), states: 3 }), "states 0003h");
        record[3] = 0x12;
        assert_eq!(Sensor::parse(&record), Ok(None));
    }

    #[test]
    fn names_of_all_types() {
        let check = |bytes: &[u8], name: &str| assert_eq!(read_name(Reader::new(bytes)).unwrap(), name);
        check(b"\xc4Temp", "Temp");
        check(b"\xc6Te\x01p \0", "Te.p");
        // The specification's own example: "IPMI".
        check(b"\x83\x29\xdc\xa6", "IPMI");
        check(b"\x42\x12\x3c", "123.");
        check(b"\xdfshort", "short");
        check(b"\xc0", "");
    }

    #[test]
    fn readings() {
        let read = |data: &[u8]| GetReading { unit: 0, number: 1 }.parse(data);
        assert_eq!(read(&[0x60, 0xc0, 0xc0]), Ok(Reading { raw: Some(0x60), states: 0xc0 }));
        assert_eq!(read(&[0x60, 0x00]), Ok(Reading { raw: None, states: 0 }));
        assert_eq!(read(&[0x60, 0xe0, 1]), Ok(Reading { raw: None, states: 1 }));
        assert_eq!(read(&[0, 0x40, 1, 0x80]), Ok(Reading { raw: Some(0), states: 1 }));
        assert!(read(&[0]).is_err());
    }

    proptest! {
        #[test]
        fn anything_may_come(mut bytes: Vec<u8>, record_type in 1u8..4, raw: u8) {
            let _ = Sensor::parse(&bytes);
            if let Some(byte) = bytes.get_mut(3) {
                *byte = record_type;
            }
            if let Ok(Some(sensor)) = Sensor::parse(&bytes) {
                if let Some(scale) = sensor.scale {
                    prop_assert!(scale.value(raw).is_none_or(f64::is_finite));
                }
                prop_assert!(sensor.name.len() <= 100);
            }
        }
    }
}
