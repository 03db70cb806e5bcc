//! What a device that declines says, and which class of failure that is (DSP0266 §"Error responses", DSP0268 "Message").

use serde_json::Value;

use crate::{
    PcuError,
    web::{Reply, clip},
};

/// Messages that say: later.
const LATER: [&str; 11] = [
    // The standard registry Base (DSP8011).
    "ServiceTemporarilyUnavailable",
    "ServiceInUnknownState",
    "ServiceShuttingDown",
    "ResourceInUse",
    "ResourceInStandby",
    "ResourceExhaustion",
    "SessionLimitExceeded",
    // iLO, with status 400, while the firmware starts (HPE's iLO message registry).
    "UnableToModifyDuringSystemPOST",
    // iDRAC, while it starts itself; the first with status 400 (github.com/quadsproject/badfish/issues/129), the others as in
    // github.com/ironcore-dev/metal-operator/issues/170 and github.com/microsoft/lisa/pull/4421.
    "SWC0700",
    "SYS518",
    "RAC0508",
];
/// Messages that say: not with this account or password. iLO sends the last one with status 400.
const STRANGER: [&str; 4] =
    ["NoValidSession", "ResourceAtUriUnauthorized", "AccountForSessionNoLongerExists", "UnauthorizedLoginAttempt"];
/// Messages that say: not with this account's rights, or not yet.
const FORBIDDEN: [&str; 3] = ["InsufficientPrivilege", "AccessDenied", "PasswordChangeRequired"];

/// One message of a device.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Message {
    /// Its key, without registry and version: `InsufficientPrivilege`.
    pub(super) key: String,
    /// What it says; may be empty.
    pub(super) text: String,
}

/// The messages in an answer: in `error`, beside it, or where iLO 4 has them.
pub(super) fn messages(body: &Value) -> Vec<Message> {
    let lists = [&body["error"]["@Message.ExtendedInfo"], &body["@Message.ExtendedInfo"], &body["Messages"]];
    let mut found: Vec<_> = lists.into_iter().filter_map(Value::as_array).flatten().take(8).map(message).collect();
    let summary = Message { key: key(&body["error"]["code"]), text: text(&body["error"]["message"]) };
    if found.iter().all(|message| message.text.is_empty()) && !summary.text.is_empty() {
        found.push(summary);
    }
    found.dedup();
    found
}

fn message(value: &Value) -> Message {
    let id = if value["MessageId"].is_string() { &value["MessageId"] } else { &value["MessageID"] };
    let said = match text(&value["Message"]) {
        said if said.is_empty() => {
            let words = value["MessageArgs"].as_array().into_iter().flatten().filter_map(Value::as_str).take(4);
            clip(&words.collect::<Vec<_>>().join(", "))
        }
        said => said,
    };
    Message { key: key(id), text: said }
}

fn text(value: &Value) -> String {
    clip(value.as_str().unwrap_or_default().trim())
}

fn key(id: &Value) -> String {
    clip(id.as_str().and_then(|id| id.rsplit('.').next()).unwrap_or_default())
}

/// The messages in words: "InsufficientPrivilege: There are …".
pub(super) fn in_words(messages: &[Message]) -> String {
    let words = messages.iter().take(3).map(|message| match (message.key.as_str(), message.text.as_str()) {
        ("", text) => text.to_owned(),
        (key, "") => key.to_owned(),
        (key, text) => format!("{key}: {text}"),
    });
    words.collect::<Vec<_>>().join("; ")
}

/// Why a device did not do what was asked: `reply` has no success.
pub(super) fn of(doing: String, reply: &Reply) -> PcuError {
    let body: Value = serde_json::from_slice(&reply.body).unwrap_or_default();
    let messages = messages(&body);
    let said = in_words(&messages);
    let mut detail = format!("HTTP status {}", reply.status);
    if !said.is_empty() {
        detail = format!("{detail}, {said}");
    }
    let has = |keys: &[&str]| messages.iter().any(|message| keys.contains(&message.key.as_str()));
    if has(&STRANGER) || (reply.status == 401 && !has(&FORBIDDEN)) {
        return PcuError::Authentication { doing, detail };
    }
    if has(&LATER) || matches!(reply.status, 429 | 502..=504) {
        if let Some(seconds) = reply.header("retry-after").and_then(|value| value.parse::<u32>().ok()) {
            detail = format!("{detail}; it asks for {seconds} seconds");
        }
        return PcuError::Busy { doing, detail };
    }
    match reply.status {
        _ if has(&FORBIDDEN) => PcuError::Privilege { doing, detail },
        403 => PcuError::Privilege { doing, detail },
        404 | 405 | 501 => PcuError::Unsupported { doing, detail },
        _ => PcuError::Refused { doing, detail },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Class;

    fn check(status: u16, headers: &[(&'static str, &str)], body: &str, expected: Class, said: &str) {
        let headers = headers.iter().map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap())).collect();
        let error = of("asking".into(), &Reply { status, headers, body: body.into() });
        assert_eq!(error.class(), expected, "{error}");
        assert!(error.to_string().contains(said), "{error}");
        assert!(error.to_string().len() < 1500);
    }

    fn with_id(id: &str) -> String {
        format!(
            r#"{{"error": {{"code": "Base.1.8.GeneralError", "message": "see more", "@Message.ExtendedInfo": [{{"MessageId": "{id}"}}]}}}}"#
        )
    }

    #[test]
    fn refusals_are_sorted_by_message_and_status() {
        check(401, &[], "", Class::Authentication, "401");
        check(403, &[], "not json", Class::Privilege, "403");
        check(403, &[], &with_id("Base.1.8.InsufficientPrivilege"), Class::Privilege, "InsufficientPrivilege");
        check(401, &[], &with_id("Base.1.0.AccessDenied"), Class::Privilege, "AccessDenied");
        check(400, &[], &with_id("iLO.2.14.UnauthorizedLoginAttempt"), Class::Authentication, "Unauthorized");
        check(400, &[], &with_id("iLO.2.37.UnableToModifyDuringSystemPOST"), Class::Busy, "SystemPOST");
        check(400, &[], &with_id("IDRAC.1.6.SWC0700"), Class::Busy, "SWC0700");
        check(409, &[], &with_id("Base.1.8.ResourceInUse"), Class::Busy, "ResourceInUse");
        check(503, &[("retry-after", "30")], "", Class::Busy, "30 seconds");
        check(404, &[], "<html>", Class::Unsupported, "404");
        check(
            400,
            &[],
            &with_id("Base.1.8.PropertyValueNotInList"),
            Class::Refused,
            "PropertyValueNotInList; GeneralError: see more",
        );
        check(500, &[], &format!(r#"{{"error": {{"message": "{}"}}}}"#, "x".repeat(100_000)), Class::Refused, "xxx");
        check(400, &[], &"[".repeat(1000), Class::Refused, "400");
        // iLO 4, HPE's own form.
        let ilo = r#"{"Messages": [{"MessageArgs": ["Power is off"], "MessageID": "iLO.0.10.InvalidOperationForSystemState"}]}"#;
        check(400, &[], ilo, Class::Refused, "InvalidOperationForSystemState: Power is off");
    }
}
