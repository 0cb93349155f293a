//! What `doctor` can see of the data file and its folder without changing either.

use std::fs::OpenOptions;
use std::io::ErrorKind;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use redb::{Database, DatabaseError, ReadableDatabase, TableError};
use rustix::process::geteuid;

use super::file::is_lost;
use super::{EMAILS, REGISTRATIONS, USERNAMES, USERS};
use crate::config::secret_file;
use crate::telemetry::finding::Finding;

const CHECK: &str = "data file";
const FOLDER: &str = "data folder";
const ELSEWHERE: &str = "set MUSTER_STORE to another place";

/// Looks at the file, its folder and the umask with which files are created.
pub(in crate::store) fn inspect(path: &Path) -> Vec<Finding> {
    let mut findings = match std::fs::metadata(path) {
        _ if is_lost(path) => vec![lost(path)],
        Ok(file) => vec![existing(path, &file)],
        Err(error) if error.kind() == ErrorKind::NotFound => vec![missing(path)],
        Err(error) => vec![unusable(path, &error.to_string(), ELSEWHERE)],
    };
    findings.extend(folder(path));
    findings.extend(umask());
    findings
}

/// A file whose secret is there had users before; a start refuses to make a new one.
fn lost(path: &Path) -> Finding {
    let secret = secret_file(path);
    let secret = secret.display();
    Finding::error(
        CHECK,
        format!(
            "{} is missing or empty, but {secret} is there: it had users before",
            path.display()
        ),
        format!("put the data file back, or remove {secret} to begin without users"),
    )
}

fn unusable(path: &Path, why: &str, remedy: &str) -> Finding {
    Finding::error(CHECK, format!("{}: {why}", path.display()), remedy)
}

fn existing(path: &Path, file: &std::fs::Metadata) -> Finding {
    let shown = path.display();
    if !file.is_file() {
        return unusable(path, "is not a file", ELSEWHERE);
    }
    if let Err(error) = OpenOptions::new().read(true).write(true).open(path) {
        let remedy =
            "make it readable and writable for this user, or set MUSTER_STORE to another place";
        return unusable(path, &format!("cannot be opened: {error}"), remedy);
    }
    let contents = contents(path, file.len());
    if contents.severity > crate::telemetry::finding::Severity::Note {
        return contents;
    }
    let (mode, own) = (file.permissions().mode(), geteuid().as_raw());
    if mode & 0o077 != 0 {
        return Finding::warning(
            CHECK,
            format!("{shown} can be read by others, and holds password hashes"),
            format!("chmod 600 {shown}"),
        );
    }
    if file.uid() != own {
        return Finding::warning(
            CHECK,
            format!("{shown} belongs to user {}, and this is user {own}", file.uid()),
            format!("chown it to the user that runs muster: chown {own} {shown}"),
        );
    }
    contents
}

/// Whether it is what a start can use. Opened for reading alone: for writing, redb would mark it as open.
fn contents(path: &Path, length: u64) -> Finding {
    let shown = path.display();
    if length == 0 {
        return Finding::note(
            CHECK,
            format!("{shown} is empty"),
            "nothing: the first start fills it",
        );
    }
    let database = match Database::builder().open_read_only(path) {
        Ok(database) => database,
        Err(DatabaseError::DatabaseAlreadyOpen) => {
            return Finding::note(
                CHECK,
                format!("{shown} is in use by a running muster; only one can have it open"),
                "nothing, or stop that one before another starts",
            );
        }
        // It was not closed: a process that ends closes nothing, and each start repairs it.
        Err(DatabaseError::RepairAborted) => return sound(path, length),
        Err(error) => {
            return unusable(path, &format!("is not a data file of muster: {error}"), ELSEWHERE);
        }
    };
    match tables(&database) {
        Ok(()) => sound(path, length),
        Err(error) => unusable(path, &format!("is not a data file of muster: {error}"), ELSEWHERE),
    }
}

fn sound(path: &Path, length: u64) -> Finding {
    Finding::ok(CHECK, format!("{}, {} KiB", path.display(), length / 1024))
}

/// The tables a start opens; one that is missing would be created.
fn tables(database: &impl ReadableDatabase) -> Result<(), redb::Error> {
    let transaction = database.begin_read()?;
    let opened = [
        transaction.open_table(USERS).err(),
        transaction.open_table(USERNAMES).err(),
        transaction.open_table(EMAILS).err(),
        transaction.open_table(REGISTRATIONS).err(),
    ];
    let missing = |error: &TableError| matches!(error, TableError::TableDoesNotExist(_));
    match opened.into_iter().flatten().find(|error| !missing(error)) {
        Some(error) => Err(error.into()),
        None => Ok(()),
    }
}

/// Whether the first start could create it. Tried with a file of another name, removed right after: a
/// read-only disk, a quota and a file system that takes no files show in no permission.
fn missing(path: &Path) -> Finding {
    let shown = path.display();
    if !parent(path).is_dir() {
        return unusable(
            path,
            "its directory is not there",
            "make the directory, or set MUSTER_STORE to another place",
        );
    }
    let mut name = path.as_os_str().to_owned();
    name.push(format!(".doctor-{}", std::process::id()));
    let trial = PathBuf::from(name);
    let made = OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(&trial);
    match made.and_then(|_| std::fs::remove_file(&trial)) {
        Ok(()) => Finding::note(
            CHECK,
            format!("{shown} is not there yet"),
            "nothing: the first start makes it",
        ),
        Err(error) => unusable(
            path,
            &format!("cannot be created: {error}"),
            "make its directory writable for this user, or set MUSTER_STORE to another place",
        ),
    }
}

/// Whether others could replace the file, however private it is itself.
fn folder(path: &Path) -> Option<Finding> {
    let parent = parent(path);
    let (shown, folder) = (parent.display(), std::fs::metadata(parent).ok()?);
    let (mode, own) = (folder.permissions().mode(), geteuid().as_raw());
    let (is_writable, is_sticky) = (mode & 0o022 != 0, mode & 0o1000 != 0);
    Some(if is_writable && !is_sticky {
        Finding::warning(
            FOLDER,
            format!("{shown} can be written by others, who can replace the data file"),
            format!("chmod go-w {shown}"),
        )
    } else if ![own, 0].contains(&folder.uid()) {
        Finding::warning(
            FOLDER,
            format!("{shown} belongs to user {}, who can replace the data file", folder.uid()),
            format!("chown {own} {shown}"),
        )
    } else {
        Finding::ok(FOLDER, format!("{shown} can be written by its owner alone"))
    })
}

/// The data file and the secret are created for their owner alone whatever the umask is; one that takes the
/// owner's own permissions lets the next start fail.
fn umask() -> Option<Finding> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let text = status.lines().find_map(|line| line.strip_prefix("Umask:"))?.trim();
    let umask = u32::from_str_radix(text, 8).ok()?;
    (umask & 0o600 != 0).then(|| {
        Finding::warning(
            "umask",
            format!("{text}: a data file that is created could not be opened again by its owner"),
            "umask 077, or UMask=0077 in the unit",
        )
    })
}

fn parent(path: &Path) -> &Path {
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty());
    parent.unwrap_or(Path::new("."))
}
