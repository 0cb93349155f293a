//! The data file of the redb store: creates it, opens it, and reopens it after a failed write.

use std::fs::{File, OpenOptions};
use std::io::Read;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::{PoisonError, RwLock};
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use redb::{Database, DatabaseError};

use crate::config::secret_file;

/// Size of the page cache in bytes.
const CACHE: usize = 16 << 20;
/// Pause between two attempts to reopen the file.
const REOPEN_PAUSE: Duration = Duration::from_secs(1);
/// The first bytes of every redb file.
const MAGIC: &[u8] = b"redb";

/// An open data file, closed only while it is being reopened.
pub(super) struct DataFile {
    path: PathBuf,
    /// `None` while it is being reopened.
    database: RwLock<Option<Database>>,
}

impl DataFile {
    /// Opens the file, or creates it if it never existed.
    ///
    /// Returns an error if the file is missing or empty while its secret exists, if it is damaged or not a
    /// data file, and if another process has it open.
    pub(super) fn open(path: &Path) -> anyhow::Result<Self> {
        let is_new = is_missing_or_empty(path);
        if is_lost(path) {
            let secret = secret_file(path);
            bail!(
                "{}: missing or empty, but {} exists, so it had users before; restore the data file, or \
                 remove {} to begin without users",
                path.display(),
                secret.display(),
                secret.display()
            );
        }
        let database = open(path, is_new)?;
        if is_new {
            tracing::info!(
                event = "data_file_created",
                path = %path.display(),
                "created a new data file without users"
            );
        }
        Ok(Self { path: path.to_owned(), database: RwLock::new(Some(database)) })
    }

    /// Runs `work` on the open database. Fails with `DatabaseClosed` while the file is being reopened.
    pub(super) fn with<T>(
        &self,
        work: impl FnOnce(&Database) -> Result<T, redb::Error>,
    ) -> Result<T, redb::Error> {
        let database = self.database.read().unwrap_or_else(PoisonError::into_inner);
        work(database.as_ref().ok_or(redb::Error::DatabaseClosed)?)
    }

    /// Closes the file and retries to open it every second until that succeeds or `is_used` returns false.
    ///
    /// redb makes every I/O error fatal: it fails all later operations until the file is reopened (redb pull request
    /// 836).
    #[expect(clippy::disallowed_methods, reason = "runs on a dedicated thread with no other work")]
    pub(super) fn reopen(&self, is_used: impl Fn() -> bool) {
        let set = |database| {
            *self.database.write().unwrap_or_else(PoisonError::into_inner) = database;
        };
        set(None);
        let mut is_logged = false;
        while is_used() {
            // Never creates a file: one that was removed meanwhile had users.
            match open(&self.path, false) {
                Ok(database) => return set(Some(database)),
                Err(error) if !std::mem::replace(&mut is_logged, true) => {
                    tracing::error!(
                        event = "data_file_reopen_failed",
                        error = format!("{error:#}"),
                        "reopening the data file failed; retrying every second"
                    );
                }
                Err(_) => {}
            }
            std::thread::sleep(REOPEN_PAUSE);
        }
    }
}

/// Whether the file has been lost: it is missing or empty, but the secret next to it exists.
pub(super) fn is_lost(path: &Path) -> bool {
    is_missing_or_empty(path) && secret_file(path).exists()
}

fn is_missing_or_empty(path: &Path) -> bool {
    std::fs::metadata(path).map_or_else(
        |error| error.kind() == std::io::ErrorKind::NotFound,
        |metadata| metadata.is_file() && metadata.len() == 0,
    )
}

fn open(path: &Path, may_create: bool) -> anyhow::Result<Database> {
    let name = path.display();
    // Readable only by its owner, because it contains password hashes.
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(may_create)
        .truncate(false)
        .mode(0o600)
        .open(path)
        .with_context(|| format!("{name}: cannot be opened; check MUSTER_STORE"))?;
    let metadata = file.metadata()?;
    ensure!(metadata.is_file(), "{name}: not a regular file; check MUSTER_STORE");
    ensure!(may_create || metadata.len() > 0, "{name}: empty, but it had users before");
    let mut builder = Database::builder();
    builder.set_cache_size(CACHE);
    let error = match builder.create_file(file) {
        Ok(database) => return Ok(database),
        Err(error) => error,
    };
    let reason = match &error {
        DatabaseError::DatabaseAlreadyOpen => bail!(
            "{name}: another process has it open; stop that process, or set MUSTER_STORE to another file"
        ),
        DatabaseError::Storage(redb::StorageError::Io(io))
            if io.kind() == std::io::ErrorKind::StorageFull =>
        {
            "cannot be opened, because the disk is full; free some space"
        }
        _ if begins_as_database(path) => "the data file is damaged; restore it from a backup",
        _ => "not a data file of muster, or one with a damaged header; check MUSTER_STORE",
    };
    Err(anyhow::Error::new(error).context(format!("{name}: {reason}")))
}

fn begins_as_database(path: &Path) -> bool {
    let mut begin = [0; MAGIC.len()];
    let read = File::open(path).and_then(|mut file| file.read_exact(&mut begin));
    read.is_ok() && begin == MAGIC
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The bytes of a data file with a table and some pages.
    fn data_file() -> Vec<u8> {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("users.redb");
        let file = DataFile::open(&path).unwrap();
        let table = redb::TableDefinition::<u64, &[u8]>::new("users");
        file.with(|database| {
            let transaction = database.begin_write()?;
            for key in 0..200 {
                transaction.open_table(table)?.insert(key, &[7u8; 500][..])?;
            }
            Ok(transaction.commit()?)
        })
        .unwrap();
        drop(file);
        std::fs::read(path).unwrap()
    }

    /// The error of opening a file with this content; `None` if it opens.
    fn open_error(content: &[u8]) -> Option<String> {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("users.redb");
        std::fs::write(&path, content).unwrap();
        DataFile::open(&path).err().map(|error| format!("{error:#}"))
    }

    #[test]
    fn damaged_file_is_reported_as_damaged() {
        let whole = data_file();
        assert_eq!(open_error(&whole), None);
        for length in [5, 100, 500, 4096, whole.len() / 2] {
            let error = open_error(&whole[..length]).expect("it is cut short");
            assert!(error.contains("is damaged; restore it from a backup"), "{length}: {error}");
        }
        // No damaged byte of the header makes opening panic.
        for at in (4..4096.min(whole.len())).step_by(53) {
            let mut damaged = whole.clone();
            damaged[at] ^= 0xff;
            if let Some(error) = open_error(&damaged) {
                assert!(error.contains("is damaged"), "{at}: {error}");
            }
        }
        for other in [&b"not a database"[..], &[0; 8192], b"red"] {
            let error = open_error(other).unwrap();
            assert!(
                error.contains("not a data file of muster, or one with a damaged header"),
                "{error}"
            );
        }
    }

    #[test]
    fn missing_or_empty_file_is_not_recreated_while_its_secret_exists() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("users.redb");
        drop(DataFile::open(&path).unwrap());
        std::fs::write(secret_file(&path), "secret").unwrap();
        drop(DataFile::open(&path).unwrap());
        let losses: [fn(&Path) -> std::io::Result<()>; 2] =
            [|path| std::fs::remove_file(path), |path| std::fs::write(path, "")];
        for lose in losses {
            lose(&path).unwrap();
            let error = DataFile::open(&path).err().unwrap().to_string();
            assert!(error.contains("users.redb: missing or empty"), "{error}");
            assert!(error.contains("remove") && error.contains("users.redb.secret"), "{error}");
            assert!(is_lost(&path));
        }
        std::fs::remove_file(secret_file(&path)).unwrap();
        drop(DataFile::open(&path).unwrap());
    }

    #[test]
    fn removed_file_is_not_recreated() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("users.redb");
        let file = DataFile::open(&path).unwrap();
        std::fs::remove_file(&path).unwrap();
        let attempts = std::cell::Cell::new(0);
        file.reopen(|| attempts.replace(attempts.get() + 1) == 0);
        assert!(file.with(|_| Ok(())).is_err() && !path.exists());
    }
}
