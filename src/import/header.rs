//! The header of a CSV file: from the cells of a record to the contract's document. A dotted name
//! such as `fullname.firstname` is a field of an object. Problems of a header name its columns by number, and
//! by name only where it is certain that the first line is a header: without one it holds a user's data.

use anyhow::bail;

use super::mapping::Mapping;
use super::names::{is_near, is_plain};
use crate::contract::{BulkField, PASSWORD_HASH, bulk_fields, contract};
use crate::rows;
use crate::domain::ContractId;

/// What a header may hold.
#[derive(Debug)]
pub(super) struct Columns {
    contract: ContractId,
    fields: Vec<BulkField>,
    mappings: Vec<Mapping>,
    id_field: Option<String>,
}

/// Where each cell of a record belongs.
#[derive(Debug)]
pub(super) struct Header {
    fields: Vec<(String, Node)>,
    /// The fields of the contract by cell; empty where a cell is none.
    targets: Vec<String>,
    nameless: Vec<usize>,
    /// Columns that are ignored, for people.
    pub(super) ignored: Vec<String>,
}

#[derive(Debug)]
enum Node {
    /// The cell of this number.
    Cell(usize),
    Object(Vec<(String, Node)>),
}

impl Columns {
    /// An error if a mapping leads to a field that the contract does not have.
    pub(super) fn new(
        id: ContractId,
        mappings: &[Mapping],
        id_field: Option<&str>,
    ) -> anyhow::Result<Self> {
        let fields = bulk_fields(contract(id));
        for Mapping { column, field } in mappings {
            if !fields.iter().any(|known| known.name == *field) {
                let names: Vec<&str> = fields.iter().map(|known| &*known.name).collect();
                bail!(
                    "--map {column}={field}: {id} has no field {field}; it has {}",
                    names.join(", ")
                );
            }
        }
        Ok(Self {
            contract: id,
            fields,
            mappings: mappings.to_vec(),
            id_field: id_field.map(str::to_owned),
        })
    }

    /// The fields of the contract that a column holds.
    fn targets<'a>(&'a self, name: &'a str) -> Vec<&'a str> {
        let mapped = self.mappings.iter().filter(|mapping| mapping.column == name);
        let mut targets: Vec<&str> = mapped.map(|mapping| &*mapping.field).collect();
        if targets.is_empty() && (name == "contract" || self.fields.iter().any(|f| f.name == name))
        {
            targets.push(name);
        }
        targets
    }
}

impl Header {
    /// Reads the first record.
    pub(super) fn new(cells: &[&[u8]], line: u64, columns: &Columns) -> anyhow::Result<Self> {
        let mut names = Vec::with_capacity(cells.len());
        for (at, cell) in cells.iter().enumerate() {
            match std::str::from_utf8(cell) {
                Ok(name) => names.push(name.trim()),
                Err(error) => {
                    let what = rows::not_utf8(cell, error.valid_up_to() + 1).message;
                    bail!("line {line}, column {}: {what}", at + 1)
                }
            }
        }
        let targets: Vec<Vec<&str>> = names.iter().map(|name| columns.targets(name)).collect();
        let known = targets.iter().filter(|targets| !targets.is_empty()).count();
        let Columns { contract, fields, mappings, id_field } = columns;
        if known == 0 {
            let names: Vec<&str> = fields.iter().map(|known| &*known.name).collect();
            bail!(
                "line {line} is not a header of {contract}: none of its {} columns is one of {} (is there \
                 a header, and does --delimiter fit?)",
                cells.len(),
                names.join(", ")
            );
        }
        // One name alone may be a user's data by chance.
        let is_header = known > 1;
        let shown = |at: usize| match names[at] {
            name if is_header && is_plain(name) => format!("column {} ({name})", at + 1),
            _ => format!("column {}", at + 1),
        };
        let mut header = Self {
            fields: Vec::new(),
            targets: Vec::new(),
            nameless: Vec::new(),
            ignored: Vec::new(),
        };
        let (mut problems, mut is_near_to) = (Vec::new(), Vec::new());
        let is_given = |field: &str| targets.iter().flatten().any(|given| *given == field);
        for (at, name) in names.iter().enumerate() {
            for target in &targets[at] {
                if !put(&mut header.fields, target, at) {
                    problems.push(format!("{} holds {target} for a second time", shown(at)));
                }
            }
            let is_id = id_field.as_deref() == Some(*name);
            if is_id && !targets[at].contains(name) {
                let key = serde_json::Value::from(*name).to_string();
                if header.fields.iter().any(|(known, _)| *known == key) {
                    problems.push(format!(
                        "{} is the column of --id-field for a second time",
                        shown(at)
                    ));
                }
                header.fields.push((key, Node::Cell(at)));
            }
            header
                .targets
                .push(targets[at].first().map_or_else(String::new, |name| (*name).to_owned()));
            if name.is_empty() {
                header.nameless.push(at);
            } else if targets[at].is_empty() && !is_id {
                let near = fields.iter().find(|f| !is_given(&f.name) && is_near(name, &f.name));
                match near {
                    Some(BulkField { name: field, .. }) => {
                        is_near_to.push(&**field);
                        problems.push(format!(
                            "{} is not a field of {contract}; did you mean {field}? Rename it, or give --map \
                             COLUMN={field}",
                            shown(at)
                        ));
                    }
                    None => header.ignored.push(shown(at)),
                }
            }
        }
        for Mapping { column, field } in mappings.iter().filter(|m| !names.contains(&&*m.column)) {
            problems.push(format!("no column {column}, which --map {column}={field} names"));
        }
        if let Some(id) = id_field.as_deref().filter(|id| !names.contains(id)) {
            problems.push(format!("no column {id}, which --id-field names"));
        }
        let is_missing = |field: &str| !is_given(field) && !is_near_to.contains(&field);
        for BulkField { name, .. } in fields.iter().filter(|f| f.is_required && is_missing(&f.name))
        {
            problems.push(format!("no column {name}, which {contract} requires"));
        }
        if is_missing("password") && is_missing(PASSWORD_HASH) {
            problems.push(format!("no column password or {PASSWORD_HASH}"));
        }
        if !problems.is_empty() {
            bail!("the header in line {line}: {}", problems.join("; "));
        }
        Ok(header)
    }

    /// How many cells a record has.
    pub(super) fn len(&self) -> usize {
        self.targets.len()
    }

    /// The field of the contract in a cell; empty if it is none.
    pub(super) fn name(&self, cell: usize) -> &str {
        &self.targets[cell]
    }

    /// The first cell with something in it whose column has no name.
    pub(super) fn unnamed(&self, cells: &[&[u8]]) -> Option<usize> {
        self.nameless.iter().copied().find(|at| !cells[*at].trim_ascii().is_empty())
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

    fn header(names: &[&str], mappings: &[&str], id_field: Option<&str>) -> anyhow::Result<Header> {
        let mappings: Vec<Mapping> = mappings.iter().map(|text| text.parse().unwrap()).collect();
        let columns = Columns::new(ContractId::Register, &mappings, id_field)?;
        Header::new(&names.iter().map(|name| name.as_bytes()).collect::<Vec<_>>(), 1, &columns)
    }

    const NAMES: [&str; 4] = ["fullname.firstname", " email", "fullname.lastname", "password"];

    fn written(header: &Header, cells: &[&str]) -> String {
        let mut out = Vec::new();
        header.write(cells, &mut out);
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn dotted_names_are_objects() {
        let header = header(&NAMES, &[], None).unwrap();
        assert_eq!(
            written(&header, &["Ann", "=1+1\"", "Lee", "x"]),
            r#"{"fullname":{"firstname":"Ann","lastname":"Lee"},"email":"=1+1\"","password":"x"}"#
        );
        assert_eq!(written(&header, &["", "a", "", ""]), r#"{"email":"a"}"#);
    }

    #[test]
    fn columns_are_mapped_ignored_and_left_without_a_name() {
        let names = ["user.mail", "given", "pw", "notes", "nr", ""];
        let mappings = ["user.mail=email", "given=fullname.firstname", "pw=passwordHash"];
        let header = header(&names, &mappings, Some("nr")).unwrap();
        assert_eq!(header.ignored, ["column 4 (notes)"]);
        assert_eq!(
            written(&header, &["a@b.co", "Ann", "x", "y", "7", ""]),
            r#"{"email":"a@b.co","fullname":{"firstname":"Ann"},"passwordHash":"x","nr":"7"}"#
        );
        assert_eq!(header.unnamed(&[b"", b"", b"", b"", b"", b" "]), None);
        assert_eq!(header.unnamed(&[b"", b"", b"", b"", b"", b"x"]), Some(5));
    }

    #[test]
    fn each_problem_names_its_column() {
        let good = ["email", "fullname.firstname", "password"];
        for (names, mappings, id_field, expected) in [
            (&["email", "password"][..], &[][..], None, "no column fullname.firstname"),
            (&["email", "fullname.firstname"], &[], None, "no column password or passwordHash"),
            (
                &["email", "fullname.firstname", "password", "email"],
                &[],
                None,
                "column 4 (email) holds email",
            ),
            (
                &["e-mail", "fullname.firstname", "password"],
                &[],
                None,
                "column 1 (e-mail) is not a field",
            ),
            (&["Email", "fullname.firstname", "password"], &[], None, "did you mean email?"),
            (&["email", "firstname", "password"], &[], None, "did you mean fullname.firstname?"),
            (
                &["email", "fullname.firstname", "password_hash"],
                &[],
                None,
                "did you mean passwordHash?",
            ),
            (&good, &[], Some("nr"), "no column nr, which --id-field names"),
            (&good, &["mail=email"], None, "no column mail, which --map mail=email names"),
            (&good, &["mail=e-mail"], None, "register has no field e-mail"),
            (&["email;password"], &[], None, "does --delimiter fit?"),
            (
                &["email", "fullname.firstname", "password", "lastnme"],
                &[],
                None,
                "fullname.lastname?",
            ),
        ] {
            let error = header(names, mappings, id_field).unwrap_err().to_string();
            assert!(error.contains(expected), "{names:?}: {error}");
        }
    }

    #[test]
    fn a_users_data_is_not_shown() {
        for names in [
            &["ann@example.com", "hunter2", "Ann"][..],
            &["ann@example.com", "password", "Ann"],
            &["hunter2", "email"],
            &[
                "email",
                "fullname.firstname",
                "password",
                "\u{1b}]0;hunter2\u{7}",
                "ann@example.com",
            ],
        ] {
            let header = header(names, &[], None);
            let shown = match header {
                Ok(header) => header.ignored.join(", "),
                Err(error) => error.to_string(),
            };
            for secret in ["hunter2", "ann@", "Ann", "\u{1b}"] {
                assert!(!shown.contains(secret), "{names:?}: {shown}");
            }
        }
    }
}
