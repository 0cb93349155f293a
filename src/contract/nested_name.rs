//! The contract `nested-name`: `POST /users/register` with a `fullname` object.

use serde_json::{Value, json};

use super::signup_fields::{self, DocumentFields, FieldWording, Wording};
use super::{ApiResponse, Contract, Document, Policy, RenderedResponse};
use crate::domain::{ContractId, FieldError, User, ValidSignup};

pub(super) struct NestedName;

const WORDING: Wording = Wording {
    firstname: FieldWording {
        field: "fullname.firstname",
        label: "First name",
        minimum: "First name must be at least 3 characters long",
    },
    lastname: FieldWording {
        field: "fullname.lastname",
        label: "Last name",
        minimum: "Last name must be at least 3 characters long",
    },
    // The published "at least 5 characters" follows from the format: the shortest address is `a@b.c`.
    email: FieldWording { field: "email", label: "Email", minimum: "Invalid Email" },
    password: FieldWording {
        field: "password",
        label: "Password",
        minimum: "Password must be at least 6 characters long",
    },
};

impl Contract for NestedName {
    fn id(&self) -> ContractId {
        ContractId::NestedName
    }

    fn check(
        &self,
        document: &Document<'_>,
        policy: &Policy,
    ) -> Result<ValidSignup, Vec<FieldError>> {
        signup_fields::check_nested(&DocumentFields::nested(document), self.id(), &WORDING, policy)
    }

    fn schema(&self) -> Value {
        signup_fields::nested_schema(self.id())
    }

    fn example(&self) -> Value {
        signup_fields::nested_example("securePassword123")
    }

    fn write(&self, signup: &ValidSignup) -> Value {
        signup_fields::write_nested(signup)
    }

    fn render(&self, response: &ApiResponse<'_>) -> RenderedResponse {
        signup_fields::render(response, |user| self.profile(user))
    }

    fn profile(&self, user: &User) -> Value {
        json!({ "_id": user.id, "fullname": user.fullname, "email": user.email, "socketId": null })
    }
}
