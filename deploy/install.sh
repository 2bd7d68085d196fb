#!/bin/sh
# Install fed_diffmic into a virtual environment of its own, every package by version and hash (deploy/requirements.txt).
#
#   sudo deploy/install.sh all TARGET             everything, such as TARGET=/opt/fed-diffmic; the Dockerfile's three steps:
#   deploy/install.sh libraries TARGET            a new environment with the libraries
#   deploy/install.sh wheel DIST                  build fed_diffmic from this checkout into the new folder DIST
#   deploy/install.sh program TARGET DIST         put what DIST holds into the environment, and try its commands
#
# Needs Python 3.11 or later with venv (another than python3: PYTHON=...), a package index, and 6 GB. The index and a
# proxy are those of pip and uv: PIP_INDEX_URL and UV_DEFAULT_INDEX, HTTPS_PROXY.
set -eu
umask 022

here=$(cd "$(dirname "$0")" && pwd)
python=${PYTHON:-python3}
export UV_HTTP_TIMEOUT="${UV_HTTP_TIMEOUT:-300}"
export UV_LINK_MODE="${UV_LINK_MODE:-copy}"

fail() {
  echo "install.sh: $1" >&2
  exit 2
}

new() {
  [ ! -e "$1" ] || fail "$1 exists; name a new folder (docs/operations.md says how to change over), or remove it first"
}

# The tools of an installation, uv and hatchling, from hashed lists, in a folder that goes when we do.
prepare() {
  "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
    fail "needs Python 3.11 or later; $python is $("$python" --version 2>&1). Name another: PYTHON=python3.12"
  # A service's own account must get at the interpreter too, which one below a private home does not allow.
  "$python" -c 'import os, sys
path = os.path.realpath(getattr(sys, "_base_executable", sys.executable))
while path != os.path.dirname(path) and os.stat(path).st_mode & 1: path = os.path.dirname(path)
sys.exit(path != os.path.dirname(path))' ||
    echo "install.sh: other accounts cannot run $python; for a service name another: PYTHON=/usr/bin/python3" >&2
  work=$(mktemp -d)
  trap 'rm -rf "$work"' EXIT
  trap 'exit 130' INT
  trap 'exit 143' TERM
  "$python" -m venv "$work/tools" || fail "$python cannot make a virtual environment (Debian: package python3-venv)"
  awk '/^uv==/ {p = 1} p {print} p && !/\\$/ {exit}' "$here/requirements.txt" >"$work/uv.txt"
  "$work/tools/bin/python" -m pip install --quiet --require-hashes --no-deps -r "$work/uv.txt"
  uv=$work/tools/bin/uv
}

libraries() {
  new "$1"
  unfinished=$1
  trap 'rm -rf "$work" "$unfinished"' EXIT # nothing half done stays
  "$uv" venv --quiet --python "$python" "$1"
  "$uv" pip install --quiet --python "$1/bin/python" --require-hashes --compile-bytecode \
    --build-constraints "$here/requirements-build.txt" -r "$here/requirements.txt"
  rm -f "$1/.lock" # of uv, writable by everyone
  trap 'rm -rf "$work"' EXIT
}

wheel() {
  new "$1"
  "$uv" pip install --quiet --python "$work/tools/bin/python" --require-hashes -r "$here/requirements-build.txt"
  (cd "$here/.." && "$work/tools/bin/python" -m hatchling build -t wheel -d "$1")
}

# uv is one of the libraries, so that this needs no index.
program() {
  uv=$1/bin/uv
  "$uv" pip install --quiet --python "$1/bin/python" --reinstall --no-deps --no-index --compile-bytecode "$2"/*.whl
  rm -f "$1/.lock"
  "$uv" pip check --python "$1/bin/python"
  mkdir -p "$1/libexec"
  cp "$here/start-run" "$1/libexec/start-run"
  "$1/bin/flower-server" --version
  "$1/bin/fed-diffmic" --version
}

usage() {
  sed -n '2,/^set/s/^# \{0,1\}//p' "$0" >&2
  exit 2
}

case "${1:-} $#" in
"libraries 2" | "wheel 2")
  prepare
  "$1" "$2"
  ;;
"program 3")
  program "$2" "$3"
  ;;
"all 2")
  prepare
  libraries "$2"
  wheel "$work/dist"
  program "$2" "$work/dist"
  ;;
*) usage ;;
esac
