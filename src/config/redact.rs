//! URLs as people may see them, without their credentials. Done on the text: a MongoDB URL may name several hosts,
//! which no general parser takes, and a broken URL must not show its password either.

use url::form_urlencoded;

/// Stands where a credential was.
pub(super) const HIDDEN: &str = "***";
/// An option with one of these in its name or its value holds a credential: `tlsCertificateKeyFilePassword=…`,
/// `authMechanismProperties=AWS_SESSION_TOKEN:…`.
const TELLING: [&str; 10] = [
    "pass",
    "pwd",
    "secret",
    "token",
    "credential",
    "apikey",
    "api_key",
    "api-key",
    "access_key",
    "signature",
];
/// Names of options that hold one, as a whole.
const NAMES: [&str; 3] = ["key", "sig", "auth"];

/// A URL without its credentials: the password before the host (or all that stands there, if that is not a user
/// and a password), options that hold one, and the fragment. What is neither a URL nor `local:` nor a file is
/// not shown at all.
pub fn without_credentials(url: &str) -> String {
    let Some((scheme, rest)) = url.split_once("://") else {
        let is_harmless = url == "local:" || url.starts_with("file:");
        return if is_harmless { url.to_owned() } else { HIDDEN.to_owned() };
    };
    // By the last @ there is: an unescaped / or ? in a password ends nothing.
    let (login, rest) =
        rest.rsplit_once('@').map_or((None, rest), |(login, rest)| (Some(login), rest));
    let login = login.map_or(String::new(), |login| match login.split_once(':') {
        Some((user, _)) if !user.contains(['/', '?', '#']) => format!("{user}:{HIDDEN}@"),
        _ => format!("{HIDDEN}@"),
    });
    let (rest, fragment) = match rest.split_once('#') {
        Some((rest, _)) => (rest, format!("#{HIDDEN}")),
        None => (rest, String::new()),
    };
    let (host, options) = match rest.split_once('?') {
        Some((host, options)) => (host, Some(options)),
        None => (rest, None),
    };
    let options = options.map_or(String::new(), |options| {
        let shown: Vec<String> = options.split('&').map(without_value).collect();
        format!("?{}", shown.join("&"))
    });
    format!("{scheme}://{login}{host}{options}{fragment}")
}

/// Whether a URL holds a credential.
pub fn has_credentials(url: &str) -> bool {
    url.contains("://") && without_credentials(url) != url
}

/// Whether an `@` comes after the host: an unescaped character of the password ended the login too early, and
/// what was before it would be taken for the host.
pub(super) fn splits_login(url: &str) -> bool {
    let rest = url.split_once("://").map_or(url, |(_, rest)| rest);
    rest.find(['/', '?', '#']).is_some_and(|end| rest[end..].contains('@'))
}

/// An option without its value, if that is a credential.
fn without_value(option: &str) -> String {
    let decoded = form_urlencoded::parse(option.as_bytes()).next();
    let Some((name, value)) = decoded else { return option.to_owned() };
    let (name, value) = (name.to_lowercase(), value.to_lowercase());
    let tells = |part: &str| name.contains(part) || value.contains(part);
    if !NAMES.contains(&name.as_str()) && !TELLING.iter().any(|part| tells(part)) {
        return option.to_owned();
    }
    match option.split_once('=') {
        Some((name, _)) => format!("{name}={HIDDEN}"),
        None => HIDDEN.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_are_shown_without_their_credentials() {
        for (url, shown) in [
            ("amqp://u:hunter2@b/%2f", "amqp://u:***@b/%2f"),
            ("amqp://hunter2@b", "amqp://***@b"),
            ("amqps://:hunter2@b", "amqps://:***@b"),
            ("amqp://u:hun/te?r2#@b:1/v", "amqp://u:***@b:1/v"),
            ("amqp://u/hunter2:x@b", "amqp://***@b"),
            ("amqp://b/?heartbeat=5", "amqp://b/?heartbeat=5"),
            ("mongodb://u:hunter2@h:1,i:2/d?x=1", "mongodb://u:***@h:1,i:2/d?x=1"),
            ("mongodb://u:hun?ter2@h/d?x=1", "mongodb://u:***@h/d?x=1"),
            (
                "mongodb://h/?tlsCertificateKeyFilePassword=hunter2&w=1",
                "mongodb://h/?tlsCertificateKeyFilePassword=***&w=1",
            ),
            (
                "mongodb://h/?authMechanismProperties=SERVICE_NAME:x,AWS_SESSION_TOKEN:hunter2",
                "mongodb://h/?authMechanismProperties=***",
            ),
            (
                "mongodb://h/?authMechanismProperties=AWS_SESSION%5fTOKEN%3Ahunter2&w=1",
                "mongodb://h/?authMechanismProperties=***&w=1",
            ),
            ("https://h/?API%5FKEY=hunter2&key=hunter2", "https://h/?API%5FKEY=***&key=***"),
            ("https://h/#hunter2", "https://h/#***"),
            ("file:./muster.redb", "file:./muster.redb"),
            ("local:", "local:"),
            ("amqp:u:hunter2@b", "***"),
        ] {
            assert_eq!(without_credentials(url), shown);
            assert_eq!(has_credentials(url), url.contains("hun") && url.contains("://"));
        }
    }

    #[test]
    fn a_login_that_ends_too_early_is_noticed() {
        for url in ["amqp://u:1/2@b", "mongodb://u:p?q@h/d", "amqp://u:1#2@b"] {
            assert!(splits_login(url), "{url}");
        }
        for url in ["amqp://u:p@b/%2f", "mongodb://u:p@h:1,i:2/d?appName=a%40b", "local:"] {
            assert!(!splits_login(url), "{url}");
        }
    }
}
