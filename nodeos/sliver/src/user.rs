//! Who a program of a sliver's runs as, by what the sliver's own `/etc/passwd` and `/etc/group` say (passwd(5), group(5)).
//!
//! A user is named as images do it: `user` or `user:group`, each by name or number.

use std::{
    fs::File,
    io::{self, Read},
    os::unix::fs::OpenOptionsExt,
};

use rustix::{
    fs::{Gid, OFlags, Uid},
    thread,
};

use crate::record::IDS;

/// More than any table of a system has. The sliver writes it, and only harms itself.
const TABLE_BYTES: u64 = 1 << 20;

/// Somebody inside a sliver.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Identity {
    pub(crate) name: String,
    pub(crate) home: String,
    user: u32,
    group: u32,
    groups: Vec<u32>,
}

impl Identity {
    /// Finds a user of the sliver that this process is in.
    ///
    /// # Errors
    /// There is none.
    pub(crate) fn find(wanted: &str) -> io::Result<Self> {
        resolve(wanted, &table("/etc/passwd"), &table("/etc/group"))
    }

    /// Becomes that user for good, together with standard output and error: what is theirs they may open again by name.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub(crate) fn assume(&self) -> io::Result<()> {
        let (user, group) = (Uid::from_raw(self.user), Gid::from_raw(self.group));
        let groups: Vec<_> = self.groups.iter().map(|&group| Gid::from_raw(group)).collect();
        for stream in [rustix::stdio::stdout(), rustix::stdio::stderr()] {
            // Who gave them may have kept them.
            let _ = rustix::fs::fchown(stream, Some(user), Some(group));
        }
        thread::set_thread_groups(&groups)?;
        thread::set_thread_res_gid(group, group, group)?;
        Ok(thread::set_thread_res_uid(user, user, user)?)
    }
}

/// A table's text; nothing if it is not there, or no file.
fn table(path: &str) -> String {
    let mut text = Vec::new();
    let flags = (OFlags::NONBLOCK | OFlags::NOCTTY).bits() as i32;
    if let Ok(file) = File::options().read(true).custom_flags(flags).open(path)
        && file.metadata().is_ok_and(|data| data.is_file())
    {
        // What was read until an error is as good.
        let _ = file.take(TABLE_BYTES).read_to_end(&mut text);
    }
    String::from_utf8_lossy(&text).into_owned()
}

/// The fields of a table's lines.
fn entries(table: &str) -> impl Iterator<Item = Vec<&str>> {
    table.lines().map(|line| line.split(':').collect())
}

/// What is called so, or has that number, in a table that has names first and numbers third.
fn entry<'a>(table: &'a str, wanted: &str) -> Option<Vec<&'a str>> {
    let named = entries(table).find(|fields| fields[0] == wanted && fields.len() >= 3);
    named.or_else(|| {
        wanted.parse::<u32>().ok()?;
        entries(table).find(|fields| fields.get(2) == Some(&wanted))
    })
}

fn number(text: &str, what: &str) -> io::Result<u32> {
    let fails = || io::Error::new(io::ErrorKind::NotFound, format!("the sliver has no {what} `{text}`"));
    text.parse().ok().filter(|id| *id < IDS).ok_or_else(fails)
}

fn resolve(wanted: &str, passwd: &str, group: &str) -> io::Result<Identity> {
    let (user, named_group) = wanted.split_once(':').map_or((wanted, None), |(user, group)| (user, Some(group)));
    let user = if user.is_empty() { "0" } else { user };
    let account = entry(passwd, user);
    let field = |index: usize| account.as_ref().and_then(|fields| fields.get(index)).filter(|text| !text.is_empty());
    let id = number(field(2).unwrap_or(&user), "user")?;
    let name = field(0).map_or_else(|| user.to_owned(), |name| (*name).to_owned());
    let home = field(5).map_or_else(|| "/".to_owned(), |home| (*home).to_owned());
    let (primary, groups) = match named_group.filter(|group| !group.is_empty()) {
        Some(wanted) => {
            let found = entry(group, wanted);
            (number(found.as_ref().map_or(wanted, |fields| fields[2]), "group")?, Vec::new())
        }
        None => {
            let primary = field(3).map_or(Ok(0), |gid| number(gid, "group"))?;
            let member = |fields: &Vec<&str>| fields.get(3).is_some_and(|list| list.split(',').any(|m| m == name));
            let others = entries(group).filter(member).filter_map(|fields| number(fields[2], "group").ok());
            (primary, others.collect())
        }
    };
    Ok(Identity { name, home, user: id, group: primary, groups })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn users_are_found_as_images_name_them() {
        let passwd =
            "root:x:0:0:root:/root:/bin/sh\nbroken\nweb:x:33:34::/var/www:\nnohome:x:40:41\nfar:x:70000:0::/:\n";
        let group = "root:x:0:\nweb:x:34:\nssl:x:50:other,web\nlog:x:51:web\nodd:x:x:web\n";
        let check = |wanted: &str, expect: Result<(&str, &str, u32, u32, &[u32]), &str>| {
            let found = resolve(wanted, passwd, group).map_err(|e| e.to_string());
            let expect = expect.map(|(name, home, user, group, groups)| Identity {
                name: name.into(),
                home: home.into(),
                user,
                group,
                groups: groups.to_vec(),
            });
            assert_eq!(found, expect.map_err(str::to_owned), "{wanted}");
        };
        check("", Ok(("root", "/root", 0, 0, &[])));
        check("root", Ok(("root", "/root", 0, 0, &[])));
        check("web", Ok(("web", "/var/www", 33, 34, &[50, 51])));
        check("33", Ok(("web", "/var/www", 33, 34, &[50, 51])));
        check("web:ssl", Ok(("web", "/var/www", 33, 50, &[])));
        check("33:7", Ok(("web", "/var/www", 33, 7, &[])));
        check(":web", Ok(("root", "/root", 0, 34, &[])));
        check("nohome", Ok(("nohome", "/", 40, 41, &[])));
        // Whom nobody knows is a number.
        check("1000", Ok(("1000", "/", 1000, 0, &[])));
        check("1000:1000", Ok(("1000", "/", 1000, 1000, &[])));
        check("nobody", Err("the sliver has no user `nobody`"));
        check("web:none", Err("the sliver has no group `none`"));
        // Beyond the sliver's identities.
        check("far", Err("the sliver has no user `70000`"));
        check("65536", Err("the sliver has no user `65536`"));
        check("-1", Err("the sliver has no user `-1`"));
    }
}
