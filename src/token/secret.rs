//! The signing secret of an embedded muster that was given none: made once, kept beside the data
//! file where only its owner can read it.

use std::fs::{OpenOptions, Permissions};
use std::io::{ErrorKind, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::Path;

use anyhow::Context;
use secrecy::SecretString;

use crate::signup::id::random_hex;

/// Reads the secret at `path`, or makes it. Tells whether it was made.
pub fn made_once(path: &Path) -> anyhow::Result<(SecretString, bool)> {
    let open = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path);
    let made = match open {
        Ok(mut file) => {
            let secret = format!("{}{}", random_hex(), random_hex());
            file.write_all(secret.as_bytes())
                .and_then(|()| file.sync_all())
                .with_context(|| format!("{}: cannot be written", path.display()))?;
            true
        }
        Err(error) if error.kind() == ErrorKind::AlreadyExists => false,
        Err(error) => {
            return Err(error).with_context(|| {
                format!(
                    "{}: cannot be made; set JWT_SECRET, or MUSTER_STORE to a writable place",
                    path.display()
                )
            });
        }
    };
    let secret = std::fs::read_to_string(path)
        .with_context(|| format!("{}: cannot be read", path.display()))?;
    if secret.trim().len() < 32 {
        anyhow::bail!(
            "{}: holds no secret of 32 bytes; remove it to have a new one made",
            path.display()
        );
    }
    let mode = std::fs::metadata(path)?.permissions().mode();
    if mode & 0o077 != 0 {
        std::fs::set_permissions(path, Permissions::from_mode(0o600))?;
    }
    Ok((SecretString::from(secret.trim()), made))
}

#[cfg(test)]
mod tests {
    use super::*;
    use secrecy::ExposeSecret;

    #[test]
    fn made_once_then_kept_and_private() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("muster.redb.secret");
        let (first, made) = made_once(&path).unwrap();
        assert!(made);
        std::fs::set_permissions(&path, Permissions::from_mode(0o644)).unwrap();
        let (second, made) = made_once(&path).unwrap();
        assert!(!made);
        assert_eq!(first.expose_secret(), second.expose_secret());
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    }
}
