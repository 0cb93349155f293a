//! An e-mail address and the key under which it is unique: one mailbox has one key, however its address is
//! written. Whether a text is an address at all is decided by the rules of `contract`.

use icu_casemap::CaseMapper;
use idna::uts46::{AsciiDenyList, DnsLength, Hyphens, Uts46};
use unicode_normalization::UnicodeNormalization;

/// An address and the key under which it is unique.
#[derive(Clone, PartialEq, Eq)]
pub struct Email {
    address: String,
    key: String,
}

impl Email {
    /// Version of the rule that makes keys, stored with every key. Raise it with each change of
    /// [`Email::new`] that gives an existing address another key; `muster reindex` then recomputes the
    /// stored ones.
    ///
    /// 1: the whole address in NFC and lower case. 2: the present one.
    pub const KEY_VERSION: i32 = 2;

    /// Makes the key: the local part in NFC after Unicode's default case folding, and the domain in its
    /// ASCII form (UTS 46), so that a domain in its own script, in punycode and in full width is one.
    /// `None` if the domain has no ASCII form.
    pub fn new(address: String) -> Option<Self> {
        let (local, domain) = address.rsplit_once('@')?;
        let key = format!("{}@{}", fold(local), ascii(domain)?);
        Some(Self { address, key })
    }

    /// The address as the user gets it back.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// The key that a unique index covers.
    pub fn key(&self) -> &str {
        &self.key
    }

    /// The part of the key after the @: the domain in ASCII.
    pub fn domain(&self) -> &str {
        self.key.rsplit_once('@').map_or("", |(_, domain)| domain)
    }
}

/// `j***@example.com`: enough to recognise an address that one knows. What is not an address stays.
pub fn mask(text: &str) -> String {
    let Some((local, domain)) = text.rsplit_once('@') else { return text.to_owned() };
    let first: String = local.chars().take(1).collect();
    format!("{first}***@{domain}")
}

/// Canonical caseless form (Unicode, 3.13, D145), composed. In lower case `ΣΣ` would be `σς`, and another
/// than `σσ`.
fn fold(local: &str) -> String {
    let decomposed: String = local.nfd().collect();
    CaseMapper::new().fold_string(&decomposed).nfc().collect()
}

/// A label may have hyphens in its third and fourth place: such hosts exist (`r3---sn-x.example`).
fn ascii(domain: &str) -> Option<String> {
    let ascii = Uts46::new().to_ascii(
        domain.as_bytes(),
        AsciiDenyList::STD3,
        Hyphens::CheckFirstLast,
        DnsLength::Verify,
    );
    Some(ascii.ok()?.into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(address: &str) -> Option<String> {
        Email::new(address.to_owned()).map(|email| email.key)
    }

    #[test]
    fn one_mailbox_has_one_key() {
        for (addresses, expected) in [
            (&["Ann@Example.COM", "ann@example.com"][..], "ann@example.com"),
            (&["J\u{f6}rg@a.example", "jo\u{308}rg@A.example"], "j\u{f6}rg@a.example"),
            (&["ΣΣ@a.example", "σς@a.example", "σσ@a.example"], "σσ@a.example"),
            (&["Straße@a.example", "STRASSE@a.example"], "strasse@a.example"),
            (
                &[
                    "ann@bücher.example",
                    "ann@BÜCHER.example",
                    "ann@bu\u{308}cher.example",
                    "ann@xn--bcher-kva.example",
                    "ann@XN--BCHER-KVA.example",
                    "ann@ｂücher.ｅxample",
                ],
                "ann@xn--bcher-kva.example",
            ),
            (&["a@faß.example", "a@xn--fa-hia.example"], "a@xn--fa-hia.example"),
            (&["a@fass.example"], "a@fass.example"),
            (&["a@r3---sn-x.example"], "a@r3---sn-x.example"),
        ] {
            for address in addresses {
                assert_eq!(key(address).as_deref(), Some(expected), "{address}");
            }
        }
    }

    #[test]
    fn a_domain_without_an_ascii_form_is_refused() {
        for address in [
            "a",
            "a@",
            "a@xn--zzzzzz99999.example",
            "a@xn--abc-.example",
            "a@b.example.",
            "a@b..example",
            "a@-b.example",
            "a@b_c.example",
            &format!("a@{}.example", "é".repeat(60)),
        ] {
            assert_eq!(key(address), None, "{address}");
        }
    }

    #[test]
    fn an_address_is_returned_as_it_was_sent() {
        let email = Email::new("J\u{f6}rg@B\u{fc}cher.Example".to_owned()).unwrap();
        assert_eq!(email.address(), "J\u{f6}rg@B\u{fc}cher.Example");
        assert_eq!(email.domain(), "xn--bcher-kva.example");
    }
}
