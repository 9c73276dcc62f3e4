#!/usr/bin/env bash
# Run every fuzz target of the module for $FUZZTIME, one after the other, whatever becomes of the others, and sum up.
# An input that fails is left in the package's testdata/fuzz/<target>, where every later test run tries it again. With
# KEEP=n the n smallest inputs that were found interesting, of at most 4 KiB, are kept there too.
# FUZZ=regexp chooses targets by "package target".
set -u
cd "$(dirname "$0")/.." || exit 2
FUZZTIME=${FUZZTIME:-30s} KEEP=${KEEP:-0} FUZZ=${FUZZ:-.}
cache=$(go env GOCACHE)/fuzz/$(go list -m)
log=$(mktemp) || exit 2
trap 'rm -f "$log"' EXIT
failed=() ran=0

targets() { grep -rlE '^func Fuzz[A-Z]' --include='*_test.go' . | sort | while read -r file; do
  sed -nE "s#^func (Fuzz[A-Za-z0-9_]*)\(.*#$(dirname "$file") \1#p" "$file"
done; }

keep() { # package target
  local from="$cache/${1#./}/$2" to="$1/testdata/fuzz/$2"
  [ -d "$from" ] || return 0
  mkdir -p "$to"
  find "$from" -type f -size -4097c -printf '%s %f\n' | sort -n | head -n "$KEEP" | while read -r _ name; do cp -n "$from/$name" "$to/"; done
}

while read -r pkg target; do
  if ! [[ "$pkg $target" =~ $FUZZ ]]; then continue; fi
  ran=$((ran + 1))
  go test -run '^$' -fuzz "^$target\$" -fuzztime "$FUZZTIME" "$pkg" >"$log" 2>&1 </dev/null
  verdict=$?
  # A worker that is in the middle of an input when the time is up is reported as a failure, but leaves no input.
  if [ "$verdict" -ne 0 ] && grep -q 'context deadline exceeded' "$log" && ! grep -qE 'Failing input|panic:' "$log"; then verdict=0; fi
  if [ "$verdict" -eq 0 ]; then
    printf 'ok    %-34s %-24s %s\n' "$pkg" "$target" "$(grep -oE 'execs: [0-9]+|new interesting: [0-9]+ \(total: [0-9]+\)' "$log" | tail -2 | tr '\n' ' ')"
    if [ "$KEEP" -gt 0 ]; then keep "$pkg" "$target"; fi
  else
    printf 'FAIL  %-34s %s\n' "$pkg" "$target"
    sed 's/^/      /' "$log"
    failed+=("$pkg $target")
  fi
done < <(targets)

echo
echo "$ran fuzz targets for $FUZZTIME each, ${#failed[@]} failed"
for f in ${failed[@]+"${failed[@]}"}; do echo "  $f"; done
[ "$ran" -gt 0 ] && [ ${#failed[@]} -eq 0 ]
