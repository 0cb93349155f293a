//! `flat-name`: `POST /users/register` with `firstname` and `lastname` beside the rest, answers
//! wrapped in `success`.

use serde_json::{Map, Value, json};

use super::document::{Document, Field};
use super::names::{Fields, PASSWORD_MIN, Spelling, Texts};
use super::{Answer, Contract, Fault, Policy, Rendered, schema};
use crate::signup::{Candidate, ContractId, Email, FieldError, User};

pub(super) struct FlatName {
    /// Whether the nested `fullname` is taken as well, after the flat keys.
    pub(super) nested_too: bool,
}

/// Shortest name, in code points.
const NAME_MIN: u64 = 2;

const TEXTS: Texts = Texts {
    firstname: Spelling {
        field: "firstname",
        label: "First name",
        minimum: "First name must be at least 2 characters",
    },
    lastname: Spelling {
        field: "lastname",
        label: "Last name",
        minimum: "Last name must be at least 2 characters",
    },
    email: Spelling { field: "email", label: "Email", minimum: "Invalid email" },
    password: Spelling {
        field: "password",
        label: "Password",
        minimum: "Password must be at least 6 characters",
    },
};

impl Contract for FlatName {
    fn id(&self) -> ContractId {
        ContractId::FlatName
    }

    fn check(
        &self,
        document: &Document<'_>,
        policy: &Policy,
    ) -> Result<Candidate, Vec<FieldError>> {
        let mut fields = Fields {
            email: document.text("email"),
            firstname: document.text("firstname"),
            lastname: document.text("lastname"),
            password: document.text("password"),
        };
        if self.nested_too {
            let nested = Fields::nested(document);
            fields.firstname = flat_first(fields.firstname, nested.firstname);
            fields.lastname = flat_first(fields.lastname, nested.lastname);
        }
        // Before the rules, because lower case can be longer: `İ` has two bytes, `i̇` three.
        if let Field::Text(address) = &mut fields.email {
            **address = address.to_lowercase();
        }
        fields.check(self.id(), NAME_MIN, &TEXTS, policy)
    }

    fn schema(&self) -> Value {
        let mut fields = json!({
            "firstname": schema::name(NAME_MIN),
            "lastname": schema::optional_name(NAME_MIN),
            "email": schema::email(),
            "password": schema::password(PASSWORD_MIN, ""),
        });
        if !self.nested_too {
            return schema::document(
                self.id().as_str(),
                fields,
                &["firstname", "email", "password"],
            );
        }
        fields["firstname"]["type"] = json!(["string", "null"]);
        fields["fullname"] =
            json!({ "description": "Counts where the names beside it are absent." });
        let nested = json!({
            "type": "object",
            "properties": { "firstname": schema::name(NAME_MIN) },
            "required": ["firstname"],
        });
        let mut schema = schema::document(self.id().as_str(), fields, &["email", "password"]);
        schema["anyOf"] = json!([
            { "properties": { "firstname": { "type": "string" } }, "required": ["firstname"] },
            {
                "properties": { "firstname": { "type": "null" }, "fullname": nested },
                "required": ["fullname"],
            },
        ]);
        schema
    }

    fn example(&self) -> Value {
        json!({
            "firstname": "John", "lastname": "Doe",
            "email": "john.doe@example.com", "password": "securepassword",
        })
    }

    fn write(&self, candidate: &Candidate) -> Value {
        let name = candidate.fullname.as_ref();
        let (key, password) = candidate.password.in_document();
        json!({
            "firstname": name.map(|name| &name.firstname),
            "lastname": name.and_then(|name| name.lastname.as_ref()),
            "email": candidate.email.as_ref().map(Email::address),
            (key): password,
        })
    }

    fn render(&self, answer: &Answer<'_>) -> Rendered {
        match answer {
            Answer::Created { user, token } => {
                let mut data = json!({ "user": shown(user) });
                if let Some(token) = token {
                    data["token"] = json!(token);
                }
                let message = "User created successfully";
                Rendered::new(201, json!({ "success": true, "message": message, "data": data }))
            }
            Answer::Invalid(errors) => {
                let errors: Map<String, Value> = errors
                    .iter()
                    .map(|error| (error.field.to_string(), json!({ "msg": error.message })))
                    .collect();
                Rendered::new(400, json!({ "success": false, "errors": errors }))
            }
            Answer::Duplicate(_) => {
                const TEXT: &str = "Email already exists";
                let errors = json!({ "email": { "msg": TEXT } });
                let body = json!({ "success": false, "message": TEXT, "errors": errors });
                Rendered::new(409, body)
            }
            Answer::Fault(fault) => {
                let text = match fault {
                    Fault::Internal => "An unexpected error occurred",
                    other => other.text(),
                };
                let common = json!({ "common": { "msg": text } });
                let body = if fault.is_ours() {
                    common
                } else {
                    json!({ "success": false, "errors": common })
                };
                Rendered::new(fault.status(), body)
            }
        }
    }

    fn profile(&self, user: &User) -> Value {
        let message = "User profile fetched successfully";
        json!({ "success": true, "message": message, "data": shown(user) })
    }
}

fn flat_first(flat: Field, nested: Field) -> Field {
    if matches!(flat, Field::Absent) { nested } else { flat }
}

fn shown(user: &User) -> Value {
    json!({
        "_id": user.id,
        "fullname": user.fullname,
        "email": user.email,
        "createdAt": user.created_at.to_rfc3339(),
        "updatedAt": user.updated_at.to_rfc3339(),
    })
}
