//! The data file of the embedded store: making it, opening it, and opening it again after a write that failed.

use std::fs::{File, OpenOptions};
use std::io::Read;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::{PoisonError, RwLock};
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use redb::{Database, DatabaseError};

use crate::config::secret_file;

/// Bytes of pages kept in memory.
const CACHE: usize = 16 << 20;
/// Between two attempts to open the file again.
const REOPEN_PAUSE: Duration = Duration::from_secs(1);
/// How every redb file begins.
const MAGIC: &[u8] = b"redb";

/// A file that is open, but for moments.
pub(super) struct DataFile {
    path: PathBuf,
    /// `None` while it is being opened again.
    database: RwLock<Option<Database>>,
}

impl DataFile {
    /// Opens the file, or makes it if it has never been made.
    pub(super) fn open(path: &Path) -> anyhow::Result<Self> {
        let is_new = is_missing_or_empty(path);
        if is_lost(path) {
            let secret = secret_file(path);
            bail!(
                "{}: missing or empty, but {} is there, so it had users before; put the data file back, or \
                 remove {} to begin without users",
                path.display(),
                secret.display(),
                secret.display()
            );
        }
        let database = open(path, is_new)?;
        if is_new {
            tracing::info!(path = %path.display(), "made a new data file, without users");
        }
        Ok(Self { path: path.to_owned(), database: RwLock::new(Some(database)) })
    }

    pub(super) fn with<T>(
        &self,
        work: impl FnOnce(&Database) -> Result<T, redb::Error>,
    ) -> Result<T, redb::Error> {
        let database = self.database.read().unwrap_or_else(PoisonError::into_inner);
        work(database.as_ref().ok_or(redb::Error::DatabaseClosed)?)
    }

    /// Closes the file and opens it again: after a failed write redb does nothing more with it until then. Gives
    /// up only when nothing can use it any more.
    #[expect(
        clippy::disallowed_methods,
        reason = "a thread of its own, which has nothing else to do"
    )]
    pub(super) fn reopen(&self, is_used: impl Fn() -> bool) {
        let set = |database| {
            *self.database.write().unwrap_or_else(PoisonError::into_inner) = database;
        };
        set(None);
        let mut is_logged = false;
        while is_used() {
            // Never a new one: a file that was removed meanwhile had users.
            match open(&self.path, false) {
                Ok(database) => return set(Some(database)),
                Err(error) if !std::mem::replace(&mut is_logged, true) => {
                    tracing::error!(
                        error = format!("{error:#}"),
                        "the data file cannot be opened again; retrying every second"
                    );
                }
                Err(_) => {}
            }
            std::thread::sleep(REOPEN_PAUSE);
        }
    }
}

/// Whether the file is gone: it is missing or empty, and the secret that is kept with it is there.
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
    // Only its owner may read it: it holds password hashes.
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
    let wrong = match &error {
        DatabaseError::DatabaseAlreadyOpen => bail!(
            "{name}: another process has it open; stop that one, or set MUSTER_STORE to another file"
        ),
        DatabaseError::Storage(redb::StorageError::Io(io))
            if io.kind() == std::io::ErrorKind::StorageFull =>
        {
            "cannot be opened, because the disk is full; make room"
        }
        _ if begins_as_database(path) => "the data file is damaged; restore it from a backup",
        _ => "not a data file of muster, or one whose beginning is damaged; check MUSTER_STORE",
    };
    Err(anyhow::Error::new(error).context(format!("{name}: {wrong}")))
}

fn begins_as_database(path: &Path) -> bool {
    let mut begin = [0; MAGIC.len()];
    let read = File::open(path).and_then(|mut file| file.read_exact(&mut begin));
    read.is_ok() && begin == MAGIC
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A data file with a table and some pages, as bytes.
    fn written() -> Vec<u8> {
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

    /// Why a file with this content is refused; none if it is not.
    fn refused(content: &[u8]) -> Option<String> {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("users.redb");
        std::fs::write(&path, content).unwrap();
        DataFile::open(&path).err().map(|error| format!("{error:#}"))
    }

    #[test]
    fn a_damaged_file_is_called_damaged() {
        let whole = written();
        assert_eq!(refused(&whole), None);
        for length in [5, 100, 500, 4096, whole.len() / 2] {
            let told = refused(&whole[..length]).expect("it is cut short");
            assert!(told.contains("is damaged; restore it from a backup"), "{length}: {told}");
        }
        // Whatever byte of the header is spoilt, opening it does not panic.
        for at in (4..4096.min(whole.len())).step_by(53) {
            let mut spoilt = whole.clone();
            spoilt[at] ^= 0xff;
            if let Some(told) = refused(&spoilt) {
                assert!(told.contains("is damaged"), "{at}: {told}");
            }
        }
        for other in [&b"not a database"[..], &[0; 8192], b"red"] {
            let told = refused(other).unwrap();
            assert!(told.contains("not a data file of muster, or one whose beginning"), "{told}");
        }
    }

    #[test]
    fn a_missing_or_empty_file_is_not_made_again_where_its_secret_is() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("users.redb");
        drop(DataFile::open(&path).unwrap());
        std::fs::write(secret_file(&path), "secret").unwrap();
        drop(DataFile::open(&path).unwrap());
        let losses: [fn(&Path) -> std::io::Result<()>; 2] =
            [|path| std::fs::remove_file(path), |path| std::fs::write(path, "")];
        for lose in losses {
            lose(&path).unwrap();
            let told = DataFile::open(&path).err().unwrap().to_string();
            assert!(told.contains("users.redb: missing or empty"), "{told}");
            assert!(told.contains("remove") && told.contains("users.redb.secret"), "{told}");
            assert!(is_lost(&path));
        }
        std::fs::remove_file(secret_file(&path)).unwrap();
        drop(DataFile::open(&path).unwrap());
    }

    #[test]
    fn a_file_that_was_removed_is_not_made_again() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("users.redb");
        let file = DataFile::open(&path).unwrap();
        std::fs::remove_file(&path).unwrap();
        let attempts = std::cell::Cell::new(0);
        file.reopen(|| attempts.replace(attempts.get() + 1) == 0);
        assert!(file.with(|_| Ok(())).is_err() && !path.exists());
    }
}
