#!/usr/bin/env bash
# Packs what a GPU machine without a network lacks, so that benchmarks/device.py runs there.
#
#     benchmarks/device_kit.sh [--list] [FOLDER]
#
# The machine: x86-64, Python 3.12 with torch, torchvision, NumPy, pandas, SciPy, scikit-learn,
# pyarrow, rich, safetensors and PyYAML. FOLDER (build/device) gets kit.tar.xz of about 36 MB, which
# unpacks into `site`, to be put on PYTHONPATH; there:
#
#     mkdir -p /tmp/kit && python3 -m tarfile -e kit.tar.xz /tmp/kit
#     export PYTHONPATH=$PWD:/tmp/kit/site RAYSWEEP_DATA=FOLDER_WITH_CIFAR10 PYTHONUNBUFFERED=1
#     export OMP_NUM_THREADS=1 RAY_memory_monitor_refresh_ms=0
#     python3 -m compileall -q -j 0 /tmp/kit/site/ray /tmp/kit/site/pydantic  # or Ray starts late
#     python3 benchmarks/device.py --out FOLDER --seconds 540
#
# --list prints the packages and what is cut from Ray, and needs no network. W&B is left out: a
# launch then warns and goes on.
set -euo pipefail

# Ray as pyproject.toml pins it; the others as the network has them. With what they need:
with_needs=(pydantic jsonschema alembic)
alone=(optuna colorlog tensorboardX plotly narwhals typer annotated-doc)
# There already, and not to be replaced.
there=(numpy markupsafe greenlet attrs)
# Of Ray: other languages and libraries, the web page of its dashboard, an allocator, type stubs.
cut=(jars cpp rllib serve llm include dashboard/client core/libjemalloc.so)
binaries=(_raylet.so core/src/ray/gcs/gcs_server core/src/ray/raylet/raylet)

here=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
ray=$(sed -n 's/.*"ray\[tune\]\(==[0-9.]*\)".*/ray\1/p' "$here/pyproject.toml")

if [ "${1:-}" = --list ]; then
    printf 'with needs: %s\nalone: %s %s\nthere: %s\ncut: %s\n' \
        "${with_needs[*]}" "$ray" "${alone[*]}" "${there[*]}" "${cut[*]}"
    exit
fi

out=${1:-$here/build/device}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir -p "$out"

target=(--only-binary=:all: --python-version 3.12 --implementation cp --abi cp312 --abi abi3 --abi none)
for glibc in 2_28 2_27 2_24 2_17 2014 1; do
    name=manylinux_${glibc}_x86_64
    case $glibc in 2014 | 1) name=manylinux${glibc}_x86_64 ;; esac
    target+=(--platform "$name")
done
python3 -m pip download --quiet "${target[@]}" --dest "$work/wheels" "${with_needs[@]}"
python3 -m pip download --quiet "${target[@]}" --dest "$work/wheels" --no-deps "$ray" "${alone[@]}"
for name in "${there[@]}"; do
    rm -f "$work/wheels/$name"-*.whl
done

mkdir -p "$work/kit/site"
for wheel in "$work"/wheels/*.whl; do # A wheel is a zip archive of what goes into the folder.
    case $wheel in
    *-cp312-* | *-abi3-* | *-none-any.whl) python3 -m zipfile -e "$wheel" "$work/kit/site" ;;
    *) echo "$wheel is not for Python 3.12" >&2 && exit 1 ;;
    esac
done
for part in "${cut[@]}"; do
    rm -rf "$work/kit/site/ray/$part"
done
for binary in "${binaries[@]}"; do
    strip --strip-unneeded "$work/kit/site/ray/$binary"
done
find "$work/kit/site" -name '*.pyi' -delete
find "$work/kit/site" -depth -type d \( -name tests -o -name __pycache__ \) -exec rm -rf {} +
chmod -R u+rwX,go+rX "$work/kit/site"
find "$work/kit/site/ray/core/src/ray" -type f -exec chmod 755 {} + # zipfile forgets modes.

tar -C "$work/kit" --sort=name --owner=0 --group=0 -c site | xz -6 -T2 >"$out/kit.tar.xz"
ls "$work/wheels" >"$out/kit.txt"
wc -c "$out/kit.tar.xz"
