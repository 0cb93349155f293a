//! The contract `flat-name`: `POST /users/register` with top-level `firstname` and `lastname`, and
//! responses with a `success` flag.

use serde_json::{Map, Value, json};

use super::document::{Document, TextValue};
use super::signup_fields::{DocumentFields, FieldWording, PASSWORD_MIN, Wording};
use super::{ApiError, ApiResponse, Contract, Policy, RenderedResponse, schema};
use crate::domain::{ContractId, Email, FieldError, User, ValidSignup};

pub(super) struct FlatName {
    /// Whether a name that is missing at the top level is read from a nested `fullname`.
    pub(super) accepts_fullname: bool,
}

/// Minimum name length, in code points.
const NAME_MIN: u64 = 2;

const WORDING: Wording = Wording {
    firstname: FieldWording {
        field: "firstname",
        label: "First name",
        minimum: "First name must be at least 2 characters",
    },
    lastname: FieldWording {
        field: "lastname",
        label: "Last name",
        minimum: "Last name must be at least 2 characters",
    },
    email: FieldWording { field: "email", label: "Email", minimum: "Invalid email" },
    password: FieldWording {
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
    ) -> Result<ValidSignup, Vec<FieldError>> {
        let mut fields = DocumentFields {
            email: document.text("email"),
            firstname: document.text("firstname"),
            lastname: document.text("lastname"),
            password: document.text("password"),
        };
        if self.accepts_fullname {
            let nested = DocumentFields::nested(document);
            fields.firstname = first_present(fields.firstname, nested.firstname);
            fields.lastname = first_present(fields.lastname, nested.lastname);
        }
        // The contract stores addresses in lower case. Converted before the rules, because lower case
        // can have more bytes: `İ` has two, `i̇` has three.
        if let TextValue::Text(address) = &mut fields.email {
            **address = address.to_lowercase();
        }
        fields.check(self.id(), NAME_MIN, &WORDING, policy)
    }

    fn schema(&self) -> Value {
        let mut fields = json!({
            "firstname": schema::name(NAME_MIN),
            "lastname": schema::optional_name(NAME_MIN),
            "email": schema::email(),
            "password": schema::password(PASSWORD_MIN, ""),
        });
        if !self.accepts_fullname {
            return schema::document(
                self.id().as_str(),
                fields,
                &["firstname", "email", "password"],
            );
        }
        fields["firstname"]["type"] = json!(["string", "null"]);
        fields["fullname"] =
            json!({ "description": "Its names apply where the top-level ones are absent." });
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

    fn write(&self, signup: &ValidSignup) -> Value {
        let name = signup.fullname.as_ref();
        let (key, password) = signup.password.in_document();
        json!({
            "firstname": name.map(|name| &name.firstname),
            "lastname": name.and_then(|name| name.lastname.as_ref()),
            "email": signup.email.as_ref().map(Email::address),
            (key): password,
        })
    }

    fn render(&self, response: &ApiResponse<'_>) -> RenderedResponse {
        match response {
            ApiResponse::Created { user, token } => {
                let mut data = json!({ "user": user_body(user) });
                if let Some(token) = token {
                    data["token"] = json!(token);
                }
                let message = "User created successfully";
                RenderedResponse::new(
                    201,
                    json!({ "success": true, "message": message, "data": data }),
                )
            }
            ApiResponse::Invalid(errors) => {
                let errors: Map<String, Value> = errors
                    .iter()
                    .map(|error| (error.field.to_string(), json!({ "msg": error.message })))
                    .collect();
                RenderedResponse::new(400, json!({ "success": false, "errors": errors }))
            }
            ApiResponse::Duplicate(_) => {
                const TEXT: &str = "Email already exists";
                let errors = json!({ "email": { "msg": TEXT } });
                let body = json!({ "success": false, "message": TEXT, "errors": errors });
                RenderedResponse::new(409, body)
            }
            ApiResponse::Error(error) => {
                let text = match error {
                    ApiError::Internal => "An unexpected error occurred",
                    other => other.text(),
                };
                let common = json!({ "common": { "msg": text } });
                let body = if error.is_server_error() {
                    common
                } else {
                    json!({ "success": false, "errors": common })
                };
                RenderedResponse::new(error.status(), body)
            }
        }
    }

    fn profile(&self, user: &User) -> Value {
        let message = "User profile fetched successfully";
        json!({ "success": true, "message": message, "data": user_body(user) })
    }
}

fn first_present(flat: TextValue, nested: TextValue) -> TextValue {
    if matches!(flat, TextValue::Absent) { nested } else { flat }
}

fn user_body(user: &User) -> Value {
    json!({
        "_id": user.id,
        "fullname": user.fullname,
        "email": user.email,
        "createdAt": user.created_at.to_rfc3339(),
        "updatedAt": user.updated_at.to_rfc3339(),
    })
}
