//! The header of a CSV file: from the cells of a record to the contract's document. A dotted name
//! such as `fullname.firstname` is a field of an object.

use anyhow::bail;

/// Where each cell of a record belongs.
#[derive(Debug)]
pub(super) struct Header {
    fields: Vec<(String, Node)>,
    /// Names by cell.
    names: Vec<String>,
}

#[derive(Debug)]
enum Node {
    /// The cell of this number.
    Cell(usize),
    Object(Vec<(String, Node)>),
}

impl Header {
    /// Reads the first record.
    pub(super) fn new(cells: &[&[u8]]) -> anyhow::Result<Self> {
        let mut header = Self { fields: Vec::new(), names: Vec::new() };
        for (at, cell) in cells.iter().enumerate() {
            let Ok(name) = std::str::from_utf8(cell) else {
                bail!("the header's column {} is not UTF-8", at + 1)
            };
            let name = name.trim();
            if name.is_empty() {
                bail!("the header's column {} has no name", at + 1);
            }
            if !put(&mut header.fields, name, at) {
                bail!("the header names {name} twice, or as a field and as an object");
            }
            header.names.push(name.to_owned());
        }
        if !header.names.iter().any(|name| name.starts_with("password")) {
            bail!(
                "the header names no password; it has {} (is the delimiter right? --delimiter sets \
                 another)",
                header.names.join(", ")
            );
        }
        Ok(header)
    }

    /// How many cells a record has.
    pub(super) fn len(&self) -> usize {
        self.names.len()
    }

    /// The name of a cell.
    pub(super) fn name(&self, cell: usize) -> &str {
        &self.names[cell]
    }

    /// Writes a record as a document. An empty cell is an absent field.
    pub(super) fn write(&self, cells: &[&str], out: &mut Vec<u8>) {
        write(&self.fields, cells, out);
    }
}

/// Puts a cell at a dotted name. Whether there was room.
fn put(fields: &mut Vec<(String, Node)>, name: &str, cell: usize) -> bool {
    let (first, rest) = match name.split_once('.') {
        Some((first, rest)) => (first, Some(rest)),
        None => (name, None),
    };
    let key = serde_json::Value::from(first).to_string();
    let there = fields.iter_mut().find(|(known, _)| *known == key);
    match (there, rest) {
        (None, None) => fields.push((key, Node::Cell(cell))),
        (None, Some(rest)) => {
            let mut inner = Vec::new();
            let fits = put(&mut inner, rest, cell);
            fields.push((key, Node::Object(inner)));
            return fits;
        }
        (Some((_, Node::Object(inner))), Some(rest)) => return put(inner, rest, cell),
        (Some(_), _) => return false,
    }
    true
}

fn write(fields: &[(String, Node)], cells: &[&str], out: &mut Vec<u8>) {
    out.push(b'{');
    let mut first = true;
    for (key, node) in fields.iter().filter(|(_, node)| node.is_filled(cells)) {
        if !std::mem::take(&mut first) {
            out.push(b',');
        }
        out.extend_from_slice(key.as_bytes());
        out.push(b':');
        match node {
            Node::Cell(cell) => {
                serde_json::to_writer(&mut *out, cells[*cell]).expect("a text is JSON");
            }
            Node::Object(inner) => write(inner, cells, out),
        }
    }
    out.push(b'}');
}

impl Node {
    fn is_filled(&self, cells: &[&str]) -> bool {
        match self {
            Self::Cell(cell) => !cells[*cell].is_empty(),
            Self::Object(inner) => inner.iter().any(|(_, node)| node.is_filled(cells)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header(names: &[&str]) -> anyhow::Result<Header> {
        Header::new(&names.iter().map(|name| name.as_bytes()).collect::<Vec<_>>())
    }

    #[test]
    fn dotted_names_are_objects() {
        let header =
            header(&["fullname.firstname", " email", "fullname.lastname", "password"]).unwrap();
        let written = |cells: &[&str]| {
            let mut out = Vec::new();
            header.write(cells, &mut out);
            String::from_utf8(out).unwrap()
        };
        assert_eq!(
            written(&["Ann", "=1+1\"", "Lee", "x"]),
            r#"{"fullname":{"firstname":"Ann","lastname":"Lee"},"email":"=1+1\"","password":"x"}"#
        );
        assert_eq!(written(&["", "a", "", ""]), r#"{"email":"a"}"#);
    }

    #[test]
    fn a_header_that_cannot_be_meant_is_refused() {
        for names in [
            &["email", "password", "email"][..],
            &["fullname", "fullname.firstname", "password"],
            &["email", "", "password"],
            &["email;password"],
        ] {
            assert!(header(names).is_err(), "{names:?}");
        }
    }
}
