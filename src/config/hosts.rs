//! URLs with several hosts, such as `amqp://user:password@a:5672,b:5672,c/vhost`.

/// Splits a URL into one URL per host, in the order of the hosts. A URL with one host is returned
/// unchanged.
pub fn each_host(url: &str) -> Vec<String> {
    let Some((scheme, rest)) = url.split_once("://") else { return vec![url.to_owned()] };
    let (authority, tail) = rest.split_at(rest.find(['/', '?', '#']).unwrap_or(rest.len()));
    let hosts_at = authority.rfind('@').map_or(0, |at| at + 1);
    let (login, hosts) = authority.split_at(hosts_at);
    hosts.split(',').map(|host| format!("{scheme}://{login}{host}{tail}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn url_of_each_host_keeps_the_rest_of_the_url() {
        for (url, hosts) in [
            ("amqp://u:p@a:1,b,[::1]:2/v?x=1", vec!["a:1", "b", "[::1]:2"]),
            // A comma in the password is not a separator.
            ("amqp://u:p,q@a/v", vec!["a"]),
            ("amqp://a,b", vec!["a", "b"]),
            ("amqp://a,,b", vec!["a", "", "b"]),
        ] {
            let (login, tail) = match url {
                "amqp://u:p,q@a/v" => ("u:p,q@", "/v"),
                "amqp://u:p@a:1,b,[::1]:2/v?x=1" => ("u:p@", "/v?x=1"),
                _ => ("", ""),
            };
            let expected = hosts.iter().map(|host| format!("amqp://{login}{host}{tail}"));
            assert_eq!(each_host(url), expected.collect::<Vec<_>>());
        }
        assert_eq!(each_host("local:"), ["local:"]);
    }
}
