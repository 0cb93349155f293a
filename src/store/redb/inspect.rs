//! Checks of `muster doctor` on the data file and its directory, without changing either.

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
const DIRECTORY: &str = "data directory";
const ELSEWHERE: &str = "set MUSTER_STORE to another file";

/// Checks the file, its directory and the process's umask.
pub(in crate::store) fn inspect(path: &Path) -> Vec<Finding> {
    let mut findings = match std::fs::metadata(path) {
        _ if is_lost(path) => vec![lost(path)],
        Ok(file) => vec![existing(path, &file)],
        Err(error) if error.kind() == ErrorKind::NotFound => vec![missing(path)],
        Err(error) => vec![unusable(path, &error.to_string(), ELSEWHERE)],
    };
    findings.extend(directory(path));
    findings.extend(umask());
    findings
}

/// Reports a lost file: its secret shows that it had users, so a start refuses to create a new one.
fn lost(path: &Path) -> Finding {
    let secret = secret_file(path);
    let secret = secret.display();
    Finding::error(
        CHECK,
        format!("{} is missing or empty, but {secret} exists: it had users before", path.display()),
        format!("restore the data file, or remove {secret} to begin without users"),
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
            "make it readable and writable for this user, or set MUSTER_STORE to another file";
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
            format!("{shown} contains password hashes, and other users can read it"),
            format!("chmod 600 {shown}"),
        );
    }
    if file.uid() != own {
        return Finding::warning(
            CHECK,
            format!("{shown} belongs to user {}, but this process runs as user {own}", file.uid()),
            format!("give it to the user that runs muster: chown {own} {shown}"),
        );
    }
    contents
}

/// Checks that a start could use the file. Opens it read-only, because redb marks a file that is open for writing.
fn contents(path: &Path, length: u64) -> Finding {
    let shown = path.display();
    if length == 0 {
        return Finding::note(
            CHECK,
            format!("{shown} is empty"),
            "nothing: the first start initializes it",
        );
    }
    let database = match Database::builder().open_read_only(path) {
        Ok(database) => database,
        Err(DatabaseError::DatabaseAlreadyOpen) => {
            return Finding::note(
                CHECK,
                format!("{shown} is open in another muster process; only one can have it open"),
                "nothing, or stop that process before another starts",
            );
        }
        // The file was not closed. A muster process never closes it when it ends, and each start repairs it.
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

/// Opens the tables that a start opens. A missing table is not an error: a start creates it.
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

/// Checks that the first start could create the file, by creating and removing a file of another name. A
/// read-only disk or a quota does not show in the permissions.
fn missing(path: &Path) -> Finding {
    let shown = path.display();
    if !parent(path).is_dir() {
        return unusable(
            path,
            "its directory does not exist",
            "create the directory, or set MUSTER_STORE to another file",
        );
    }
    let mut name = path.as_os_str().to_owned();
    name.push(format!(".doctor-{}", std::process::id()));
    let trial = PathBuf::from(name);
    let created =
        OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(&trial);
    match created.and_then(|_| std::fs::remove_file(&trial)) {
        Ok(()) => Finding::note(
            CHECK,
            format!("{shown} does not exist yet"),
            "nothing: the first start creates it",
        ),
        Err(error) => unusable(
            path,
            &format!("cannot be created: {error}"),
            "make its directory writable for this user, or set MUSTER_STORE to another file",
        ),
    }
}

/// Checks whether other users could replace the file, whatever its own permissions are.
fn directory(path: &Path) -> Option<Finding> {
    let parent = parent(path);
    let (shown, directory) = (parent.display(), std::fs::metadata(parent).ok()?);
    let (mode, own) = (directory.permissions().mode(), geteuid().as_raw());
    let (is_writable, is_sticky) = (mode & 0o022 != 0, mode & 0o1000 != 0);
    Some(if is_writable && !is_sticky {
        Finding::warning(
            DIRECTORY,
            format!("other users can write to {shown} and replace the data file"),
            format!("chmod go-w {shown}"),
        )
    } else if ![own, 0].contains(&directory.uid()) {
        Finding::warning(
            DIRECTORY,
            format!("{shown} belongs to user {}, who can replace the data file", directory.uid()),
            format!("chown {own} {shown}"),
        )
    } else {
        Finding::ok(DIRECTORY, format!("only its owner can write to {shown}"))
    })
}

/// Checks that the umask keeps the owner's permissions: otherwise a start could not open the file that an earlier
/// one created. The modes of the data file and the secret grant nothing to other users.
fn umask() -> Option<Finding> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let text = status.lines().find_map(|line| line.strip_prefix("Umask:"))?.trim();
    let umask = u32::from_str_radix(text, 8).ok()?;
    (umask & 0o600 != 0).then(|| {
        Finding::warning(
            "umask",
            format!("{text}: the owner of a new data file could not reopen it"),
            "umask 077, or UMask=0077 in the unit",
        )
    })
}

/// The directory of a file; `.` for a bare file name.
fn parent(path: &Path) -> &Path {
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty());
    parent.unwrap_or(Path::new("."))
}
