//! The contract `register`: `POST /register` with a `fullname` object. Its texts differ from
//! `nested-name`, and one error covers every missing required field.

use serde_json::{Value, json};

use super::document::TextValue;
use super::signup_fields::{self, DocumentFields, FieldWording, Wording};
use super::{ApiResponse, Contract, Document, Policy, RenderedResponse};
use crate::domain::{ContractId, FieldError, User, ValidSignup};

pub(super) struct Register;

const WORDING: Wording = Wording {
    firstname: FieldWording {
        field: "fullname.firstname",
        label: "First Name",
        minimum: "First Name should have atleast 3 characters",
    },
    lastname: FieldWording {
        field: "fullname.lastname",
        label: "Last Name",
        minimum: "Last Name should have atleast 3 characters",
    },
    email: FieldWording { field: "email", label: "Email", minimum: "Invalid Email" },
    password: FieldWording {
        field: "password",
        label: "Password",
        minimum: "Password should contain atleast 6 characters",
    },
};

impl Contract for Register {
    fn id(&self) -> ContractId {
        ContractId::Register
    }

    fn check(
        &self,
        document: &Document<'_>,
        policy: &Policy,
    ) -> Result<ValidSignup, Vec<FieldError>> {
        let fields = DocumentFields::nested(document);
        let required = [&fields.email, &fields.firstname, &fields.password];
        if required.iter().any(|field| matches!(field, TextValue::Absent)) {
            return Err(vec![FieldError {
                field: "".into(),
                code: "EMPTY_FIELD".into(),
                message: "All fields are required".into(),
            }]);
        }
        signup_fields::check_nested(&fields, self.id(), &WORDING, policy)
    }

    fn schema(&self) -> Value {
        signup_fields::nested_schema(self.id())
    }

    fn example(&self) -> Value {
        signup_fields::nested_example("securepassword")
    }

    fn write(&self, signup: &ValidSignup) -> Value {
        signup_fields::write_nested(signup)
    }

    fn render(&self, response: &ApiResponse<'_>) -> RenderedResponse {
        signup_fields::render(response, |user| self.profile(user))
    }

    fn profile(&self, user: &User) -> Value {
        json!({ "_id": user.id, "fullname": user.fullname, "email": user.email })
    }
}
