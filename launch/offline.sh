#!/usr/bin/env bash
# Takes hmtl_jax to a machine without a network: wheels, code and prepared data in one archive.
#
#   launch/offline.sh pack hmtl_jax.tar --python 3.12 --data data/ferplus       # here, with a network
#   tar -xf hmtl_jax.tar && hmtl_jax/launch/offline.sh install                  # there
#
#   pack FILE         the tracked files as they are, and what they need, as a tar
#     --python X.Y      the Python there: 3.11, 3.12 or 3.13 (default 3.12)
#     --platform TAG    the machine there, as wheels name it (default manylinux_2_28_x86_64)
#     --requirements F  another file beside requirements.txt, such as requirements-dev.txt; may be repeated
#     --with REQ        one more requirement, such as 'jax[cuda13]>=0.10.2,<0.13'; may be repeated
#     --base FILE       what is there already (its `pip list` or `pip freeze`), and is left out
#     --data DIR        a prepared set, such as data/ferplus; may be repeated
#   install           makes .venv beside it, with no look at a network, and checks that it imports
#
# With --base, .venv sees the packages of the Python that it is made on: give that one as PYTHON=FILE. pip
# must be there. Variables: PYTHON and VENV as in launch/setup.sh; for pack, PYTHON runs pip (default
# .venv/bin/python).
#
# Exit status: 0 done, 1 a step failed, 2 wrong usage, 3 packed for another machine or Python.

set -euo pipefail
here=$PWD
cd "$(dirname "${BASH_SOURCE[0]}")/.."
known=$PWD/.offline # wheels, and what they were packed for

fail() { # status, sentence
    printf 'launch/offline.sh: %s\n' "$2" >&2
    exit "$1"
}

pack() { # archive
    local archive=$1 python=${PYTHON:-.venv/bin/python} made attempt missing
    [[ $version =~ ^3\.1[123]$ ]] || fail 2 "--python $version is not one of 3.11, 3.12, 3.13."
    command -v "$python" >/dev/null || fail 1 "there is no $python; run launch/setup.sh first, or set PYTHON."
    for made in "${data[@]}"; do
        [[ -d $made ]] || fail 2 "there is no prepared set $made; see python -m hmtl_jax.prepare."
    done
    work=$(mktemp -d)
    trap 'rm -rf "$work"' EXIT
    made=$work/hmtl_jax
    mkdir -p "$made/.offline/wheels"
    git ls-files -z | tar -c --null -T - | tar -x -C "$made"
    if ((${#with[@]})); then printf '%s\n' "${with[@]}" >"$made/requirements-offline.txt"; fi

    local asked=(requirements.txt "${requirements[@]}") arguments=() alone=()
    for file in "${asked[@]}"; do
        [[ -f $file ]] || fail 2 "there is no requirements file $file."
        if [[ $(head -n 1 "$file") == '# --no-deps' ]]; then alone+=("$file"); else arguments+=(-r "$file"); fi
    done
    if ((${#with[@]})); then
        asked+=(requirements-offline.txt)
        arguments+=(-r "$made/requirements-offline.txt")
    fi
    if [[ $base ]]; then
        # Two columns with a header, or lines of name==version.
        sed -nE 's/^([A-Za-z0-9._-]+) +([0-9][^ ]*).*$/\1==\2/p; /^[A-Za-z0-9._-]+==[^ ]+$/p' "$base" \
            >"$work/base.txt"
        [[ -s $work/base.txt ]] || fail 2 "$base is no list of packages; give it what 'pip list' prints there."
        arguments+=(-c "$work/base.txt")
    fi
    # A package without a wheel is built here, which goes for pure Python alone.
    for attempt in 1 2 3 4 5 6; do
        if fetch "$python" "$made" "${arguments[@]}" >"$work/log" 2>&1; then break; fi
        missing=$(sed -nE 's/^.*No matching distribution found for ([A-Za-z0-9._-]+).*$/\1/p' "$work/log" | tail -n 1)
        [[ $missing && $attempt != 6 ]] || { tail -n 20 "$work/log" >&2 && fail 1 "pip could not fetch the \
wheels for Python $version on $platform, see above$([[ -z $base ]] || echo "; a line of $base that does not fit can be taken out")."; }
        echo "offline: building a wheel of $missing, which has none"
        "$python" -m pip wheel -qq --no-deps -w "$made/.offline/wheels" "$missing" >&2 ||
            fail 1 "$missing has no wheel for Python $version on $platform, and cannot be built."
        compgen -G "$made/.offline/wheels/*-none-any.whl" >/dev/null || fail 1 "$missing is no pure Python."
    done
    for file in "${alone[@]}"; do
        fetch "$python" "$made" --no-deps -r "$file" || fail 1 "pip could not fetch what $file asks for, see above."
    done
    [[ -z $base ]] || leave_out "$made/.offline/wheels" "$work/base.txt"
    {
        printf 'version=%s\nplatform=%s\nbase=%s\n' "$version" "$platform" "${base:+yes}"
        printf 'requirements="%s"\n' "${asked[*]:1}"
    } >"$made/.offline/packed"
    for set in "${data[@]}"; do
        mkdir -p "$made/data"
        cp -r "$set" "$made/data/"
    done
    tar -cf "$work/archive" -C "$work" hmtl_jax
    mv "$work/archive" "$archive"
    echo "offline: $archive, $(du -h "$archive" | cut -f1): $(find "$made/.offline/wheels" -name '*.whl' | wc -l) \
wheels for Python $version on $platform, the code$([[ ${#data[@]} == 0 ]] || echo ", ${data[*]}")"
}

fetch() { # interpreter, folder, arguments of pip
    "$1" -m pip download -qq --no-input --disable-pip-version-check --only-binary=:all: --python-version "$version" \
        --implementation cp --abi "cp${version/./}" --abi abi3 --abi none "${tags[@]}" \
        --find-links "$2/.offline/wheels" -d "$2/.offline/wheels" "${@:3}"
}

leave_out() { # folder of wheels, name==version lines: takes away what is there already
    local wheel name
    for wheel in "$1"/*.whl; do
        name=$(basename "$wheel" | sed -E 's/^([^-]+)-([^-]+)-.*$/\1==\2/' | tr 'A-Z_.' 'a-z--')
        if tr 'A-Z_.' 'a-z--' <"$2" | grep -qxF -- "$name"; then rm "$wheel"; fi
    done
}

install() {
    [[ -f $known/packed ]] || fail 2 "there is nothing packed in $PWD; unpack an archive of 'offline.sh pack' first."
    local version platform base requirements machine libc
    # shellcheck disable=SC1091 # written by pack
    . "$known/packed"
    machine=${platform#manylinux_*_*_}
    [[ $(uname -m) == "$machine" ]] || fail 3 "it was packed for $machine and this is $(uname -m); pack again \
with --platform manylinux_2_28_$(uname -m)."
    libc=$(getconf GNU_LIBC_VERSION 2>/dev/null | cut -d' ' -f2 || true)
    local wanted=${platform#manylinux_}
    wanted=${wanted%_"$machine"}
    if [[ -z $libc ]] || [[ $(printf '%s\n' "${wanted/_/.}" "$libc" | sort -V | head -n 1) != "${wanted/_/.}" ]]; then
        fail 3 "it was packed for glibc ${wanted/_/.} or newer and this machine has ${libc:-none}; pack again with \
an older --platform."
    fi
    if [[ ${PYTHON:-} && ! $PYTHON =~ ^3\.1[123]$ ]]; then
        local found
        found=$("$PYTHON" -c 'import sys; print("%d.%d" % sys.version_info[:2])') || fail 3 "$PYTHON does not run."
        [[ $found == "$version" ]] || fail 3 "it was packed for Python $version and $PYTHON is $found; pack again \
with --python $found, or name a Python $version."
    fi
    local files
    read -ra files <<<"$requirements"
    PIP_NO_INDEX=1 PIP_FIND_LINKS="$known/wheels" PYTHON=${PYTHON:-$version} SYSTEM_PACKAGES=$base \
        launch/setup.sh "${files[@]}" || fail 1 "the set-up failed, see above."
    "${VENV:-.venv}/bin/python" -c 'import hmtl_jax.train' || fail 1 "what was installed does not import, see above."
    echo "offline: ready; ${VENV:-.venv}/bin/python -m hmtl_jax.main --config=… --workdir=…"
}

command=${1:---help}
shift || true
version=3.12 platform=manylinux_2_28_x86_64 base='' requirements=() with=() data=() archive=''
absolute() { [[ $1 == /* ]] && printf '%s' "$1" || printf '%s/%s' "$here" "$1"; }
case $command in
-h | --help)
    sed -n '2,/^$/s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"
    exit
    ;;
pack) ;;
install)
    (($# == 0)) || fail 2 "install takes no argument; see --help."
    install
    exit
    ;;
*) fail 2 "unknown command $command; see --help." ;;
esac
while (($#)); do
    case $1 in
    --python | --platform | --requirements | --with | --base | --data)
        (($# > 1)) || fail 2 "$1 needs a value; see --help."
        ;;&
    --python) version=$2 ;;
    --platform) platform=$2 ;;
    --requirements) requirements+=("$2") ;;
    --with) with+=("$2") ;;
    --base) base=$(absolute "$2") && { [[ -f $base ]] || fail 2 "there is no file $2."; } ;;
    --data) data+=("$(absolute "${2%/}")") ;;
    --*) fail 2 "unknown option $1; see --help." ;;
    *)
        [[ -z $archive ]] || fail 2 "name one archive, not $archive and $1."
        archive=$(absolute "$1")
        shift
        continue
        ;;
    esac
    shift 2
done
[[ $archive ]] || fail 2 "name the archive to write, such as hmtl_jax.tar."
[[ ! -e $archive ]] || fail 2 "$archive is there already; remove it, or choose another name."
[[ $platform =~ ^manylinux_2_[0-9]+_[a-z0-9_]+$ ]] ||
    fail 2 "--platform $platform is not of the kind manylinux_2_28_x86_64."
# Every older glibc's wheels run there too.
tags=()
minor=${platform#manylinux_2_}
machine=${minor#*_}
minor=${minor%%_*}
for ((older = minor; older >= 5; older--)); do tags+=(--platform "manylinux_2_${older}_$machine"); done
tags+=(--platform "manylinux2014_$machine" --platform any)
pack "$archive"
