# Sets a Debian or Ubuntu machine up for MirrorFS; sourced by scripts/test and scripts/demo.
# shellcheck shell=bash
#
#   setup_all          packages, FUSE and .venv; does nothing when all is there
#   require_fuse       fails with a sentence when nothing can be mounted here
#
# Afterwards $REPO is the repository and .venv/bin comes first on PATH. Proxy and pip settings of the
# machine are used as they are. MIRRORFS_PYTHON names an interpreter to use instead of the one found.

REPO=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd)
VENV=$REPO/.venv
readonly REPO VENV

# What is compiled against or run. pcscd is started by the tests, apart from the machine's own, to which
# vsmartcard-vpcd adds two empty readers where it runs. Python's own packages are added only if no interpreter will do.
PACKAGES=(fuse3 libfuse3-dev pkg-config build-essential softhsm2 libfido2-1 sqlite3 rsync attr acl git tar
  pcscd vsmartcard-vpcd opensc-pkcs11 ykcs11 swtpm libtss2-dev pinentry-curses systemd)
readonly PACKAGES

say() { printf '%s\n' "$*"; }
die() {
  printf 'error: %s\n' "$*" >&2
  exit 1
}

as_root() {
  if ((EUID == 0)); then
    "$@"
  elif command -v sudo >/dev/null; then
    sudo "$@"
  else
    die "this needs root and there is no sudo; as root, run: $*"
  fi
}

is_installed() {
  [[ $(dpkg-query -W -f='${db:Status-Status}' "$1" 2>/dev/null) == installed ]]
}

# apt_install PACKAGE...: install those that are missing, after saying which.
apt_install() {
  local package missing=()
  for package in "$@"; do
    is_installed "$package" || missing+=("$package")
  done
  ((${#missing[@]})) || return 0
  say "setup: apt-get will install: ${missing[*]}"
  # sudo drops the environment, so a proxy named in it is handed on.
  local name settings=(DEBIAN_FRONTEND=noninteractive)
  for name in http_proxy https_proxy no_proxy; do
    [[ -z ${!name:-} ]] || settings+=("$name=${!name}")
  done
  as_root env "${settings[@]}" apt-get update -qq
  as_root env "${settings[@]}" apt-get install -y -qq --no-install-recommends "${missing[@]}"
}

# An interpreter will do if it is new enough, makes virtual environments and can build extensions.
python_will_do() {
  "$1" - >/dev/null 2>&1 <<'PY'
import ensurepip, os, sys, sysconfig, venv
assert sys.version_info >= (3, 11)
assert os.path.exists(os.path.join(sysconfig.get_path("include"), "Python.h"))
PY
}

# find_python: print the interpreter to use, or fail.
find_python() {
  local name
  for name in ${MIRRORFS_PYTHON:+"$MIRRORFS_PYTHON"} python3 /usr/bin/python3 \
    python3.11 python3.12 python3.13 python3.14; do
    if command -v "$name" >/dev/null && python_will_do "$name"; then
      command -v "$name"
      return 0
    fi
    if [[ $name == "${MIRRORFS_PYTHON:-}" ]]; then
      return 1 # asked for by name: another one would be a surprise
    fi
  done
  return 1
}

install_python() {
  apt_install python3 python3-dev python3-venv
  find_python >/dev/null && return 0
  local version
  for version in 3.14 3.13 3.12 3.11; do # this release's own python3 is too old
    if apt-cache show "python$version-venv" >/dev/null 2>&1; then
      apt_install "python$version" "python$version-dev" "python$version-venv"
      return 0
    fi
  done
}

setup_packages() {
  if command -v apt-get >/dev/null && command -v dpkg-query >/dev/null; then
    apt_install "${PACKAGES[@]}"
    if [[ -z ${MIRRORFS_PYTHON:-} ]] && ! find_python >/dev/null; then
      install_python
    fi
    return 0
  fi
  local tool missing=()
  for tool in fusermount3 pkg-config cc softhsm2-util sqlite3 rsync getfattr getfacl git tar swtpm pcscd vpcd-config \
    unshare nsenter setpriv; do
    command -v "$tool" >/dev/null || missing+=("$tool")
  done
  /sbin/ldconfig -p | grep -q 'libfido2\.so\.1 ' || missing+=(libfido2.so.1)
  ((${#missing[@]} == 0)) || die "not a Debian or Ubuntu machine; please install what provides: ${missing[*]}"
}

# setup_venv: (re)create .venv unless its stamp says that nothing it depends on has changed.
setup_venv() {
  local python stamp
  python=$(find_python) || die "no Python with headers and venv from 3.11 on was found;" \
    "install python3.11 or newer with its -dev and -venv packages, or set MIRRORFS_PYTHON"
  # The path is part of the stamp: neither a virtual environment nor an editable install can be moved.
  stamp=$("$python" -c 'import sys; print(sys.version, sys.base_prefix)' | cat - "$REPO/pyproject.toml" <(say "$REPO") |
    sha256sum | cut -d' ' -f1)
  if [[ -f $VENV/setup-stamp && $(<"$VENV/setup-stamp") == "$stamp" ]]; then
    return 0
  fi
  say "setup: $("$python" --version) makes .venv and pip installs mirrorfs with its test tools into it"
  "$python" -m venv --clear "$VENV"
  "$VENV/bin/python" -m pip install --quiet --editable "$REPO[test]"
  say "$stamp" >"$VENV/setup-stamp" # last, so that an interrupted set-up is done again
}

# Loading the module may be refused (a container, no root); require_fuse tells whether it mattered.
setup_fuse() {
  [[ -e /dev/fuse ]] && return 0
  command -v modprobe >/dev/null || return 0
  say "setup: loading the kernel's fuse module"
  (as_root modprobe fuse) || say "setup: the fuse module could not be loaded"
}

require_fuse() {
  [[ -e /dev/fuse ]] || die "/dev/fuse is missing, so nothing can be mounted: load the kernel module" \
    "(modprobe fuse), or start the container with --device /dev/fuse --cap-add SYS_ADMIN"
  # Opened, not just looked at: a container may show the device and still refuse it.
  (: <>/dev/fuse) 2>/dev/null || die "/dev/fuse is there but may not be opened by $(id -un): give this user" \
    "read and write access to it, or start the container with --device /dev/fuse --cap-add SYS_ADMIN"
}

setup_all() {
  setup_packages
  setup_fuse
  setup_venv
  PATH=$VENV/bin:$PATH
  export PATH
}
