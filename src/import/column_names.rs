//! Column names: which may appear in messages, and which are probably misspelt.

/// Returns whether a name may appear in a message: a short identifier that does not look like user data.
pub(super) fn is_plain(name: &str) -> bool {
    let is_allowed = |c: char| c.is_alphanumeric() || "_-. ".contains(c);
    name.chars().next().is_some_and(char::is_alphabetic)
        && name.chars().all(is_allowed)
        && name.chars().count() <= 40
}

/// Returns whether a column name is probably a misspelling of a field name or of its last segment.
pub(super) fn is_similar(column: &str, field: &str) -> bool {
    let column = fold(column);
    let last = field.rsplit('.').next().unwrap_or(field);
    [field, last].into_iter().map(fold).any(|field| {
        let allowed = match field.len().min(column.len()) {
            0..=3 => 0,
            4..=6 => 1,
            _ => 2,
        };
        strsim::osa_distance(&column, &field) <= allowed
    })
}

fn fold(name: &str) -> String {
    name.chars().filter(|c| c.is_alphanumeric()).flat_map(char::to_lowercase).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn misspellings_are_similar_and_other_words_are_not() {
        for (column, field) in [
            ("E-Mail", "email"),
            ("mail", "email"),
            ("user_name", "username"),
            ("Password Hash", "passwordHash"),
            ("pasword", "password"),
            ("First Name", "fullname.firstname"),
            ("fullName.firstName", "fullname.firstname"),
        ] {
            assert!(is_similar(column, field), "{column} {field}");
        }
        for (column, field) in [
            ("email_verified", "email"),
            ("name", "username"),
            ("id", "email"),
            ("created_at", "password"),
            ("salt", "email"),
        ] {
            assert!(!is_similar(column, field), "{column} {field}");
        }
    }

    #[test]
    fn user_data_is_not_plain() {
        assert!(is_plain("Last login") && is_plain("größe"));
        for data in ["", "a@b.co", "$2b$10$x", "\u{1b}[31m", "1990-01-01", &"x".repeat(41)] {
            assert!(!is_plain(data), "{data}");
        }
    }
}
