//! Names of columns: which may be shown, and which were perhaps meant for another.

/// Whether a name is plain enough to be shown: a short identifier, and no user's data as far as can be seen.
pub(super) fn is_plain(name: &str) -> bool {
    let known = |c: char| c.is_alphanumeric() || "_-. ".contains(c);
    name.chars().next().is_some_and(char::is_alphabetic)
        && name.chars().all(known)
        && name.chars().count() <= 40
}

/// Whether a column's name is likely a spelling of a field's, or of the last part of it.
pub(super) fn is_near(column: &str, field: &str) -> bool {
    let column = folded(column);
    let last = field.rsplit('.').next().unwrap_or(field);
    [field, last].into_iter().map(folded).any(|field| {
        let allowed = match field.len().min(column.len()) {
            0..=3 => 0,
            4..=6 => 1,
            _ => 2,
        };
        strsim::osa_distance(&column, &field) <= allowed
    })
}

fn folded(name: &str) -> String {
    name.chars().filter(|c| c.is_alphanumeric()).flat_map(char::to_lowercase).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spellings_are_near_and_other_words_are_not() {
        for (column, field) in [
            ("E-Mail", "email"),
            ("mail", "email"),
            ("user_name", "username"),
            ("Password Hash", "passwordHash"),
            ("pasword", "password"),
            ("First Name", "fullname.firstname"),
            ("fullName.firstName", "fullname.firstname"),
        ] {
            assert!(is_near(column, field), "{column} {field}");
        }
        for (column, field) in [
            ("email_verified", "email"),
            ("name", "username"),
            ("id", "email"),
            ("created_at", "password"),
            ("salt", "email"),
        ] {
            assert!(!is_near(column, field), "{column} {field}");
        }
    }

    #[test]
    fn data_is_not_plain() {
        assert!(is_plain("Last login") && is_plain("größe"));
        for data in ["", "a@b.co", "$2b$10$x", "\u{1b}[31m", "1990-01-01", &"x".repeat(41)] {
            assert!(!is_plain(data), "{data}");
        }
    }
}
