#!/usr/bin/env python3
"""Draws terminal.svg: a session typed into a real shell with a real muster.

    cargo build --release && docs/pictures/terminal.py target/release

The argument is the folder of the program. Port 3000 must be free.
"""

import fcntl
import html
import os
import pathlib
import pty
import re
import select
import struct
import sys
import tempfile
import termios
import time

PROMPT = "$ "
COLUMNS = 100
TIMEOUT = 60  # seconds
PASSWORD = "securePassword123"

# Input, and the end of its output.
SESSION = [
    ("muster 2> log & until muster healthcheck 2> /dev/null; do sleep 1; done", PROMPT),
    ("muster signup --firstname Ann --email ann@example.com", "Password: "),
    (PASSWORD, "Once more: "),
    (PASSWORD, PROMPT),
    ("curl -w ' %{http_code}\\n' -H 'Content-Type: application/json' -d @ann.json localhost:3000/register", PROMPT),
    ("kill %1; wait", PROMPT),
    ("cat users.csv", PROMPT),
    ("muster import users.csv --contract register --output report.ndjson", PROMPT),
]
FILES = {
    "users.csv": f"fullname.firstname,email,password\nGrace,grace@example.com,{PASSWORD}\n"
    f"Alan,alan@example.com,short\nAnn,ann@example.com,{PASSWORD}\n",
    "ann.json": '{"fullname":{"firstname":"Ann"},"email":"ann@example.com","password":"'
    + PASSWORD
    + '"}',
}


def record(programs):
    """The output of the session, as text."""
    with tempfile.TemporaryDirectory() as folder:
        for name, text in FILES.items():
            (pathlib.Path(folder) / name).write_text(text)
        child, screen = pty.fork()
        if child == 0:
            os.chdir(folder)
            path = f"{programs}:/usr/bin:/bin"
            environment = {"PATH": path, "PS1": PROMPT, "TERM": "dumb", "LC_ALL": "C.UTF-8"}
            os.execve("/bin/bash", ["bash", "--norc", "--noprofile", "+m"], environment)
        # Wide enough that the shell does not wrap lines.
        fcntl.ioctl(screen, termios.TIOCSWINSZ, struct.pack("HHHH", 50, 1000, 0, 0))
        output = until(screen, PROMPT)
        for typed, end in SESSION:
            os.write(screen, typed.encode() + b"\n")
            output += until(screen, end)
        os.write(screen, b"exit\n")
        os.waitpid(child, 0)
        output = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", output)
        return output.replace("\r\n", "\n")


def until(screen, end):
    """What comes until the screen ends so and is quiet."""
    output, deadline = "", time.monotonic() + TIMEOUT
    while time.monotonic() < deadline:
        ready, _, _ = select.select([screen], [], [], 0.3)
        if ready:
            output += os.read(screen, 65536).decode()
        elif output.endswith(end):
            return output
    sys.exit(f"no {end!r} within {TIMEOUT} s after {output!r}")


def draw(text):
    """The picture; what was typed is bright, the rest plain."""
    lines = []
    for line in text.removesuffix(PROMPT).strip().split("\n"):
        kind = "typed" if line.startswith(PROMPT) else "output"
        for at in range(0, max(len(line), 1), COLUMNS):
            lines.append((kind, line[at : at + COLUMNS]))
    height = 20 * len(lines) + 32
    rows = "\n".join(
        f'<text x="16" y="{20 * n + 30}" class="{kind}">{html.escape(line)}</text>'
        for n, (kind, line) in enumerate(lines)
    )
    return f"""<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {8 * COLUMNS + 32} {height}" role="img">
<title>A session with muster in a terminal</title>
<style>
rect {{ fill: #f6f8fa; stroke: #d0d7de }}
text {{ font: 13px ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; fill: #424a53; white-space: pre }}
.typed {{ fill: #0550ae; font-weight: 600 }}
@media (prefers-color-scheme: dark) {{
  rect {{ fill: #161b22; stroke: #30363d }}
  text {{ fill: #c9d1d9 }}
  .typed {{ fill: #79c0ff }}
}}
</style>
<rect x="0.5" y="0.5" width="{8 * COLUMNS + 31}" height="{height - 1}" rx="8"/>
{rows}
</svg>
"""


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    picture = draw(record(pathlib.Path(sys.argv[1]).resolve()))
    pathlib.Path(__file__).with_name("terminal.svg").write_text(picture)
