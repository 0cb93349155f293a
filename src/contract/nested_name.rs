//! `nested-name`: `POST /users/register` with `fullname: {firstname, lastname}`.

use serde_json::{Value, json};

use super::names::{self, Fields, Spelling, Texts};
use super::{Answer, Contract, Document, Policy, Rendered};
use crate::signup::{Candidate, ContractId, FieldError, User};

pub(super) struct NestedName;

const TEXTS: Texts = Texts {
    firstname: Spelling {
        field: "fullname.firstname",
        label: "First name",
        minimum: "First name must be at least 3 characters long",
    },
    lastname: Spelling {
        field: "fullname.lastname",
        label: "Last name",
        minimum: "Last name must be at least 3 characters long",
    },
    // The document's "at least 5 characters" follows from the format: `a@b.c`.
    email: Spelling { field: "email", label: "Email", minimum: "Invalid Email" },
    password: Spelling {
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
    ) -> Result<Candidate, Vec<FieldError>> {
        names::check_nested(&Fields::nested(document), self.id(), &TEXTS, policy)
    }

    fn schema(&self) -> Value {
        names::nested_schema(self.id())
    }

    fn example(&self) -> Value {
        names::nested_example("securePassword123")
    }

    fn write(&self, candidate: &Candidate) -> Value {
        names::write_nested(candidate)
    }

    fn render(&self, answer: &Answer<'_>) -> Rendered {
        names::render(answer, |user| self.profile(user))
    }

    fn profile(&self, user: &User) -> Value {
        json!({ "_id": user.id, "fullname": user.fullname, "email": user.email, "socketId": null })
    }
}
