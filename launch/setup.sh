#!/bin/sh
# Makes the virtual environment .venv, once, and says where it is ready. make calls it; by hand:
#
#   launch/setup.sh                         # requirements.txt
#   launch/setup.sh requirements-dev.txt    # and what tests and lint need
#
# A file that begins with "# --no-deps" lists all that it needs, and is installed after the others.
# It takes the newest Python from 3.11 to 3.13 that this machine has. Variables:
#   PYTHON   take this one: a version (3.12), a name on PATH, or a file
#   VENV     make this folder instead of .venv
#   SYSTEM_PACKAGES=yes   let it see the packages of the Python that it is made on
#
# Exit status: 0 ready, 1 the set-up failed, 2 wrong usage, 3 no suitable Python.
set -eu
cd "$(dirname "$0")/.."
venv=${VENV:-.venv}

fail() { # status, sentence
    printf 'setup: %s\n' "$2" >&2
    exit "$1"
}

# Runs in any Python, however old. Prints "ok RANK FILE", or why this one will not do. FILE is the base
# interpreter behind a shim or a virtual environment, so that .venv never hangs on itself.
probe='
import sys, sysconfig
v = sys.version_info
def refuse(why):
    print("no " + why)
    sys.exit()
if not (3, 11) <= v[:2] <= (3, 13):
    refuse("is Python %d.%d.%d, but hmtl_jax needs 3.11, 3.12 or 3.13" % v[:3])
if v[3] != "final" or sys.implementation.name != "cpython" or sysconfig.get_config_var("Py_GIL_DISABLED"):
    refuse("is not a released standard CPython, and the packages have wheels for no other")
for name in ("venv", "ensurepip", "ssl", "ctypes", "lzma", "bz2"):
    try:
        __import__(name)
    except ImportError:
        refuse("was built or packaged without the module " + name)
print("ok %d%03d %s" % (v[1], v[2], sys._base_executable))
'

ask() { # interpreter; a shim of pyenv may stand on PATH with no version behind it, so each one is run
    "$1" -c "$probe" 2>/dev/null || printf 'no does not run\n'
}

newest() { # minor versions, as a pattern such as "1[123]"; prints the file, or nothing
    for name in python3.13 python3.12 python3.11 python3 python \
        "${PYENV_ROOT:-${HOME:-}/.pyenv}"/versions/3.*/bin/python; do
        ask "$name"
    done | grep "^ok $1" | sort -k2,2rn | head -n 1 | cut -d' ' -f3-
}

choose() { # prints the file of the interpreter to build on
    case ${PYTHON:-} in
    '' | 3.11 | 3.12 | 3.13)
        minor=${PYTHON:+${PYTHON#3.}}
        file=$(newest "${minor:-1[123]}")
        [ -n "$file" ] || fail 3 "no working Python ${PYTHON:-3.11, 3.12 or 3.13} (with venv and ssl) is \
on PATH or among pyenv's versions; install one, or name one with PYTHON=FILE."
        ;;
    *)
        verdict=$(ask "$PYTHON")
        [ "${verdict%% *}" = ok ] || fail 3 "PYTHON=$PYTHON ${verdict#no }; name another one."
        file=${verdict#ok * }
        ;;
    esac
    printf '%s\n' "$file"
}

stamp() { # requirements file
    printf '%s/.ready-%s-%s\n' "$venv" "$1" "$(cksum <"$1" | tr ' ' '-')"
}

usable() { # is the environment there, and built on the interpreter that was asked for?
    verdict=$(ask "$venv/bin/python")
    [ "${verdict%% *}" = ok ] || return 1
    [ -z "$python" ] || [ "${verdict#ok * }" = "$python" ]
}

installed() { # has every requirements file been installed, to the end?
    for file in "$@"; do [ -e "$(stamp "$file")" ] || return 1; done
    usable
}

# .unfinished holds the number of the process that works on the environment. It is made in one step
# (noclobber), so it is the lock too; whoever finds one whose process is gone starts from nothing.
lock() {
    mkdir -p "$venv"
    until (set -C && echo $$ >"$venv/.unfinished") 2>/dev/null; do
        owner=$(cat "$venv/.unfinished" 2>/dev/null) || continue
        if kill -0 "${owner:-0}" 2>/dev/null; then
            [ -n "${told:-}" ] || echo "setup: process $owner is making $venv; waiting for it"
            told=yes
            sleep 1
        else
            rm -rf "$venv"
            mkdir -p "$venv"
        fi
    done
}

build() { # requirements files
    if ! usable; then
        [ -n "$python" ] || python=$(choose) || exit $?
        echo "setup: making $venv with $("$python" -V) ($python)"
        rm -rf "${venv:?}"/* "$venv"/.ready-*
        "$python" -m venv ${SYSTEM_PACKAGES:+--system-site-packages} "$venv" || fail 1 "$python could not make $venv; see above."
    fi
    echo "setup: installing $*; the first time this takes a minute or two"
    alone=
    for file in "$@"; do
        rm -f "$venv/.ready-$file"-*
        if [ "$(head -n 1 "$file")" = "# --no-deps" ]; then
            alone="$alone $file"
        else
            set -- "$@" -r "$file"
        fi
        shift
    done
    install "$@"
    for file in $alone; do install --no-deps -r "$file"; done
}

install() { # arguments of pip
    # -qq: errors alone. No --log, which brings the rest back.
    "$venv/bin/python" -m pip install -qq --no-input --disable-pip-version-check "$@" ||
        fail 1 "pip failed, see above; then run the same command again."
}

for file in "$@"; do
    [ -f "$file" ] || fail 2 "there is no requirements file $file; usage: launch/setup.sh [FILE]..."
done
set -- requirements.txt "$@"
python=
[ -z "${PYTHON:-}" ] || python=$(choose) || exit $?
[ ! -e "$venv/.unfinished" ] && installed "$@" && exit 0
lock
if ! installed "$@"; then # another process may have done it while this one waited
    build "$@"
    for file in "$@"; do : >"$(stamp "$file")"; done
    echo "setup: $venv is ready"
fi
rm "$venv/.unfinished"
