"""Registers a user with the generated client and requests the profile: person.py URL ADDRESS."""

import sys

from client import AuthenticatedClient, Client
from client.api.registration import post_users_register
from client.api.users import get_profile
from client.models import FlatName, FlatName201, FlatName400, FlatNameProfile

url, address = sys.argv[1:]
person = FlatName(firstname="Ann", email=address, password="secret-of-a-client")
made = post_users_register.sync(client=Client(url), body=person)
assert isinstance(made, FlatName201), made
assert made.data.user.email == address

person.email = "no-address"
refused = post_users_register.sync(client=Client(url), body=person)
assert isinstance(refused, FlatName400), refused
assert refused.errors.email.msg == "Invalid email"

profile = get_profile.sync(client=AuthenticatedClient(url, made.data.token))
assert isinstance(profile, FlatNameProfile), profile
assert profile.data.field_id == made.data.user.field_id
