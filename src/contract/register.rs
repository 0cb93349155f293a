//! `register`: `POST /register`, the nested form with texts of its own and one answer for whatever
//! required field is missing.

use serde_json::{Value, json};

use super::document::Field;
use super::names::{self, Fields, Spelling, Texts};
use super::{Answer, Contract, Document, Policy, Rendered};
use crate::signup::{Candidate, ContractId, FieldError, User};

pub(super) struct Register;

const TEXTS: Texts = Texts {
    firstname: Spelling {
        field: "fullname.firstname",
        label: "First Name",
        minimum: "First Name should have atleast 3 characters",
    },
    lastname: Spelling {
        field: "fullname.lastname",
        label: "Last Name",
        minimum: "Last Name should have atleast 3 characters",
    },
    email: Spelling { field: "email", label: "Email", minimum: "Invalid Email" },
    password: Spelling {
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
    ) -> Result<Candidate, Vec<FieldError>> {
        let fields = Fields::nested(document);
        let required = [&fields.email, &fields.firstname, &fields.password];
        if required.iter().any(|field| matches!(field, Field::Absent)) {
            return Err(vec![FieldError {
                field: "".into(),
                code: "EMPTY_FIELD".into(),
                message: "All fields are required".into(),
            }]);
        }
        names::check_nested(&fields, self.id(), &TEXTS, policy)
    }

    fn schema(&self) -> Value {
        names::nested_schema(self.id())
    }

    fn example(&self) -> Value {
        names::nested_example("securepassword")
    }

    fn write(&self, candidate: &Candidate) -> Value {
        names::write_nested(candidate)
    }

    fn render(&self, answer: &Answer<'_>) -> Rendered {
        names::render(answer, |user| self.profile(user))
    }

    fn profile(&self, user: &User) -> Value {
        json!({ "_id": user.id, "fullname": user.fullname, "email": user.email })
    }
}
