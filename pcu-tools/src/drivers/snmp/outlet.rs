//! Finding an outlet by its number or its name.

use super::{
    client::Client,
    message::Value,
    object::{Index, ObjectId},
    table::Table,
};
use crate::{Deadline, Method, PcuError};

/// `sysDescr`: what the device says that it is (RFC 3418).
pub(super) const DESCRIPTION: &str = "1.3.6.1.2.1.1.1.0";
/// `sysObjectID`: which model it is (RFC 3418).
pub(super) const IDENTITY: &str = "1.3.6.1.2.1.1.2.0";

/// An outlet of a device, and what it is called.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Named {
    pub(super) index: Index,
    pub(super) name: String,
}

/// The outlet that a method means. The device has it.
///
/// # Errors
/// When the device does not have it, or has two of that name.
pub(super) fn find(client: &mut Client, table: &Table, method: &Method, deadline: Deadline) -> Result<Index, PcuError> {
    let wanted = method.outlet()?.trim();
    if let Some(index) = table.index(wanted) {
        return match client.get(&table.status.oid.of(&index), deadline)? {
            Value::Absent => Err(unknown(client, table, wanted, deadline)),
            _ => Ok(index),
        };
    }
    let mut found: Vec<Index> = Vec::new();
    for column in &table.names {
        for (row, value) in client.walk(column, deadline)? {
            if row.len() == table.depth && value == Value::Text(wanted.into()) && found.iter().all(|seen| seen.0 != row)
            {
                found.push(Index(row));
            }
        }
    }
    match found.as_slice() {
        [] => Err(unknown(client, table, wanted, deadline)),
        [index] => Ok(index.clone()),
        [one, other, ..] => Err(method.misconfigured(&format!(
            "its outlets {} and {} are both called {wanted:?}; write the number",
            table.written(one),
            table.written(other)
        ))),
    }
}

/// All outlets of a device.
///
/// # Errors
/// When it does not say.
pub(super) fn list(client: &mut Client, table: &Table, deadline: Deadline) -> Result<Vec<Named>, PcuError> {
    let status = &table.status.oid;
    let mut outlets: Vec<Named> = Vec::new();
    for (row, _) in client.walk(&status.column(), deadline)? {
        if let Some(index) = status.outlet(&row).filter(|index| index.0.len() == table.depth) {
            outlets.push(Named { index, name: String::new() });
        }
    }
    if let Some(column) = table.names.first() {
        for (row, value) in client.walk(column, deadline)? {
            if let (Some(outlet), Value::Text(name)) = (outlets.iter_mut().find(|outlet| outlet.index.0 == row), value)
            {
                outlet.name = name;
            }
        }
    }
    Ok(outlets)
}

/// What a device is: its `sysObjectID` and its `sysDescr`, where it says so.
///
/// # Errors
/// When it does not answer.
pub(super) fn identity(client: &mut Client, deadline: Deadline) -> Result<(Option<ObjectId>, String), PcuError> {
    let object = |text: &str| text.parse::<ObjectId>().expect("it is an identifier");
    let id = match client.get(&object(IDENTITY), deadline)? {
        Value::Object(id) => Some(id),
        _ => None,
    };
    let description = match client.get(&object(DESCRIPTION), deadline)? {
        Value::Text(text) => text,
        _ => String::new(),
    };
    Ok((id, description))
}

/// Why there is no such outlet: a list of those there are helps, but its failure does not count.
fn unknown(client: &mut Client, table: &Table, wanted: &str, deadline: Deadline) -> PcuError {
    let doing = client.doing("looking for the outlet");
    match list(client, table, deadline) {
        Ok(outlets) if outlets.is_empty() => {
            let (id, description) = identity(client, deadline).unwrap_or_default();
            let id = id.map_or_else(|| "no sysObjectID".into(), |id| format!("sysObjectID {id}"));
            let detail = format!("there are no outlets where this driver looks for them; it is {description:?}, {id}");
            PcuError::BadAnswer { doing, detail }
        }
        outlets => {
            let known = outlets.unwrap_or_default();
            let known = known.iter().map(|outlet| match outlet.name.as_str() {
                "" => table.written(&outlet.index),
                name => format!("{} ({name})", table.written(&outlet.index)),
            });
            PcuError::OutletUnknown { doing, outlet: wanted.into(), known: known.collect() }
        }
    }
}
