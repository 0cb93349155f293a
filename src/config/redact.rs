//! Removes secrets from settings and URLs before they are shown.
//!
//! URLs are processed as text. A general URL parser rejects MongoDB URLs with several hosts, and a
//! malformed URL must not show its password either.

use toml::Value;
use url::form_urlencoded;

/// Keys whose values are never shown. Their variables can also name a file (`…_FILE`).
const SECRETS: [&str; 6] = [
    "front.bulk_api_key",
    "queue.seal_private_keys",
    "queue.url",
    "store.url",
    "token.secret",
    "trace.headers",
];
/// Replaces a credential.
const HIDDEN: &str = "***";
/// Parts of the name or value of a URL parameter that holds a credential, such as
/// `tlsCertificateKeyFilePassword=…` and `authMechanismProperties=AWS_SESSION_TOKEN:…`.
const CREDENTIAL_PARTS: [&str; 10] = [
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
/// Complete names of URL parameters that hold a credential.
const CREDENTIAL_NAMES: [&str; 3] = ["key", "sig", "auth"];

/// Whether a key's value is never shown.
pub(super) fn is_secret(key: &str) -> bool {
    SECRETS.contains(&key)
}

/// Returns a key's value as it can be shown. Secrets are replaced, except that secret URLs only lose
/// their credentials. Other URLs lose theirs as well.
pub(super) fn redacted(key: &str, value: &Value) -> Value {
    match value {
        Value::Array(items) if is_secret(key) => {
            Value::Array(items.iter().map(|_| Value::String(HIDDEN.to_owned())).collect())
        }
        Value::Array(items) => Value::Array(items.iter().map(|item| redacted(key, item)).collect()),
        Value::String(text) if is_secret(key) && !text.is_empty() => {
            let is_url = key.ends_with(".url");
            Value::String(if is_url { without_credentials(text) } else { HIDDEN.to_owned() })
        }
        Value::String(text) if text.contains("://") => Value::String(without_credentials(text)),
        other => other.clone(),
    }
}

/// Returns a URL without its credentials. Replaced are the password (or everything before the host, if
/// that is not a user and a password), parameters with credentials, and the fragment. A text that is
/// neither a URL nor `local:` nor `file:…` is replaced completely.
pub fn without_credentials(url: &str) -> String {
    let Some((scheme, rest)) = url.split_once("://") else {
        let is_harmless = url == "local:" || url.starts_with("file:");
        return if is_harmless { url.to_owned() } else { HIDDEN.to_owned() };
    };
    // Split at the last @, because a password may contain an unescaped / or ?.
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
    let (host, parameters) = match rest.split_once('?') {
        Some((host, parameters)) => (host, Some(parameters)),
        None => (rest, None),
    };
    let parameters = parameters.map_or(String::new(), |parameters| {
        let shown: Vec<String> = parameters.split('&').map(without_value).collect();
        format!("?{}", shown.join("&"))
    });
    format!("{scheme}://{login}{host}{parameters}{fragment}")
}

/// Whether a URL contains credentials.
pub fn has_credentials(url: &str) -> bool {
    url.contains("://") && without_credentials(url) != url
}

/// Whether an `@` follows the host part. Then an unescaped character of the password ended the user
/// information too early, and a part of the password would be used as the host.
pub(super) fn has_unescaped_login(url: &str) -> bool {
    let rest = url.split_once("://").map_or(url, |(_, rest)| rest);
    rest.find(['/', '?', '#']).is_some_and(|end| rest[end..].contains('@'))
}

/// Returns a URL parameter with its value replaced if that is a credential.
fn without_value(parameter: &str) -> String {
    let decoded = form_urlencoded::parse(parameter.as_bytes()).next();
    let Some((name, value)) = decoded else { return parameter.to_owned() };
    let (name, value) = (name.to_lowercase(), value.to_lowercase());
    let has = |part: &str| name.contains(part) || value.contains(part);
    if !CREDENTIAL_NAMES.contains(&name.as_str()) && !CREDENTIAL_PARTS.iter().any(|part| has(part))
    {
        return parameter.to_owned();
    }
    match parameter.split_once('=') {
        Some((name, _)) => format!("{name}={HIDDEN}"),
        None => HIDDEN.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn url_is_shown_without_credentials() {
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
    fn unescaped_login_is_detected() {
        for url in ["amqp://u:1/2@b", "mongodb://u:p?q@h/d", "amqp://u:1#2@b"] {
            assert!(has_unescaped_login(url), "{url}");
        }
        for url in ["amqp://u:p@b/%2f", "mongodb://u:p@h:1,i:2/d?appName=a%40b", "local:"] {
            assert!(!has_unescaped_login(url), "{url}");
        }
    }
}
