//! The header of a CSV file: maps the cells of a record to a JSON document of the contract. A dotted name such as
//! `fullname.firstname` is a field of an object. Errors name columns by number, and by name only if the first line is
//! certainly a header, because otherwise it contains user data.

use anyhow::bail;

use super::column_names::{is_plain, is_similar};
use super::mapping::Mapping;
use crate::contract::{BulkField, PASSWORD_HASH, bulk_fields, contract};
use crate::domain::ContractId;
use crate::rows;

/// The columns that a header may have.
#[derive(Debug)]
pub(super) struct ColumnRules {
    contract: ContractId,
    fields: Vec<BulkField>,
    mappings: Vec<Mapping>,
    id_field: Option<String>,
}

/// The field of each cell of a record.
#[derive(Debug)]
pub(super) struct Header {
    fields: Vec<(String, FieldNode)>,
    /// The contract's field of each cell; empty if the cell has none.
    targets: Vec<String>,
    nameless: Vec<usize>,
    /// Ignored columns, for the user.
    pub(super) ignored: Vec<String>,
}

#[derive(Debug)]
enum FieldNode {
    /// Index of the cell.
    Cell(usize),
    Object(Vec<(String, FieldNode)>),
}

impl ColumnRules {
    /// Returns an error if a mapping names a field that the contract does not have.
    pub(super) fn new(
        id: ContractId,
        mappings: &[Mapping],
        id_field: Option<&str>,
    ) -> anyhow::Result<Self> {
        let fields = bulk_fields(contract(id));
        for Mapping { column, field } in mappings {
            if !fields.iter().any(|existing| existing.name == *field) {
                let names: Vec<&str> = fields.iter().map(|field| &*field.name).collect();
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

    /// Returns the contract's fields that a column maps to.
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
    /// Parses the first record. Returns an error with all problems of the header.
    pub(super) fn new(cells: &[&[u8]], line: u64, columns: &ColumnRules) -> anyhow::Result<Self> {
        let mut names = Vec::with_capacity(cells.len());
        for (at, cell) in cells.iter().enumerate() {
            match std::str::from_utf8(cell) {
                Ok(name) => names.push(name.trim()),
                Err(error) => {
                    let message = rows::not_utf8(cell, error.valid_up_to() + 1).message;
                    bail!("line {line}, column {}: {message}", at + 1)
                }
            }
        }
        let targets: Vec<Vec<&str>> = names.iter().map(|name| columns.targets(name)).collect();
        let recognised = targets.iter().filter(|targets| !targets.is_empty()).count();
        let ColumnRules { contract, fields, mappings, id_field } = columns;
        if recognised == 0 {
            let names: Vec<&str> = fields.iter().map(|field| &*field.name).collect();
            bail!(
                "line {line}: expected a header with fields of {contract}, but none of its {} columns is one of {}; check \
                 that the file has a header, and --delimiter",
                cells.len(),
                names.join(", ")
            );
        }
        // A single match may be user data by chance.
        let is_header = recognised > 1;
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
        let (mut problems, mut similar_to) = (Vec::new(), Vec::new());
        let is_present = |field: &str| targets.iter().flatten().any(|target| *target == field);
        for (at, name) in names.iter().enumerate() {
            for target in &targets[at] {
                if !assign(&mut header.fields, target, at) {
                    problems.push(format!("{} is a second column for {target}", shown(at)));
                }
            }
            let is_id = id_field.as_deref() == Some(*name);
            if is_id && !targets[at].contains(name) {
                let key = serde_json::Value::from(*name).to_string();
                if header.fields.iter().any(|(existing, _)| *existing == key) {
                    problems.push(format!("{} is a second column for --id-field", shown(at)));
                }
                header.fields.push((key, FieldNode::Cell(at)));
            }
            header
                .targets
                .push(targets[at].first().map_or_else(String::new, |name| (*name).to_owned()));
            if name.is_empty() {
                header.nameless.push(at);
            } else if targets[at].is_empty() && !is_id {
                let similar =
                    fields.iter().find(|f| !is_present(&f.name) && is_similar(name, &f.name));
                match similar {
                    Some(BulkField { name: field, .. }) => {
                        similar_to.push(&**field);
                        problems.push(format!(
                            "{} is not a field of {contract}; did you mean {field}? Rename the column, or give --map \
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
        let is_missing = |field: &str| !is_present(field) && !similar_to.contains(&field);
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

    /// Returns the number of cells that a record must have.
    pub(super) fn len(&self) -> usize {
        self.targets.len()
    }

    /// Returns the contract's field of a cell; empty if it has none.
    pub(super) fn name(&self, cell: usize) -> &str {
        &self.targets[cell]
    }

    /// Returns the first non-empty cell in a column without a name.
    pub(super) fn unnamed(&self, cells: &[&[u8]]) -> Option<usize> {
        self.nameless.iter().copied().find(|at| !cells[*at].trim_ascii().is_empty())
    }

    /// Writes a record as a JSON document. An empty cell is an absent field.
    pub(super) fn write(&self, cells: &[&str], out: &mut Vec<u8>) {
        write(&self.fields, cells, out);
    }
}

/// Assigns a cell to a dotted name. Returns whether the name was free.
fn assign(fields: &mut Vec<(String, FieldNode)>, name: &str, cell: usize) -> bool {
    let (first, rest) = match name.split_once('.') {
        Some((first, rest)) => (first, Some(rest)),
        None => (name, None),
    };
    let key = serde_json::Value::from(first).to_string();
    let existing = fields.iter_mut().find(|(existing, _)| *existing == key);
    match (existing, rest) {
        (None, None) => fields.push((key, FieldNode::Cell(cell))),
        (None, Some(rest)) => {
            let mut inner = Vec::new();
            let is_free = assign(&mut inner, rest, cell);
            fields.push((key, FieldNode::Object(inner)));
            return is_free;
        }
        (Some((_, FieldNode::Object(inner))), Some(rest)) => return assign(inner, rest, cell),
        (Some(_), _) => return false,
    }
    true
}

fn write(fields: &[(String, FieldNode)], cells: &[&str], out: &mut Vec<u8>) {
    out.push(b'{');
    let mut first = true;
    for (key, node) in fields.iter().filter(|(_, node)| node.is_filled(cells)) {
        if !std::mem::take(&mut first) {
            out.push(b',');
        }
        out.extend_from_slice(key.as_bytes());
        out.push(b':');
        match node {
            FieldNode::Cell(cell) => {
                serde_json::to_writer(&mut *out, cells[*cell]).expect("a string can be serialized");
            }
            FieldNode::Object(inner) => write(inner, cells, out),
        }
    }
    out.push(b'}');
}

impl FieldNode {
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
        let columns = ColumnRules::new(ContractId::Register, &mappings, id_field)?;
        Header::new(&names.iter().map(|name| name.as_bytes()).collect::<Vec<_>>(), 1, &columns)
    }

    const NAMES: [&str; 4] = ["fullname.firstname", " email", "fullname.lastname", "password"];

    fn written(header: &Header, cells: &[&str]) -> String {
        let mut out = Vec::new();
        header.write(cells, &mut out);
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn dotted_names_become_objects() {
        let header = header(&NAMES, &[], None).unwrap();
        assert_eq!(
            written(&header, &["Ann", "=1+1\"", "Lee", "x"]),
            r#"{"fullname":{"firstname":"Ann","lastname":"Lee"},"email":"=1+1\"","password":"x"}"#
        );
        assert_eq!(written(&header, &["", "a", "", ""]), r#"{"email":"a"}"#);
    }

    #[test]
    fn columns_may_be_mapped_ignored_or_nameless() {
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
    fn header_errors_name_the_column() {
        let good = ["email", "fullname.firstname", "password"];
        for (names, mappings, id_field, expected) in [
            (&["email", "password"][..], &[][..], None, "no column fullname.firstname"),
            (&["email", "fullname.firstname"], &[], None, "no column password or passwordHash"),
            (
                &["email", "fullname.firstname", "password", "email"],
                &[],
                None,
                "column 4 (email) is a second column for email",
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
            (&["email;password"], &[], None, "check that the file has a header, and --delimiter"),
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
    fn user_data_is_not_shown() {
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
