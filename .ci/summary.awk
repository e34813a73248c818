# Repeats the summary lines of pytest and pg_prove, what could not be exercised, and
# the steps of make that failed; ends on `N passed, N failed`.

function count(word) {
  return match($0, "[0-9]+ " word) ? substr($0, RSTART) + 0 : 0
}

function repeat(line) { closing = closing line "\n" }

/^=+ .*(passed|failed|error|skipped|no tests ran).* in [0-9.]+s.*=+$/ {
  passed += count("passed")
  failed += count("failed") + count("error")
  repeat($0)
}

/^ *Failed [0-9]+\/[0-9]+ subtests/ {
  failed += $2 + 0
  passed -= $2 + 0
}

/^Files=[0-9]+, Tests=[0-9]+/ {
  passed += substr($2, length("Tests=") + 1) + 0
  repeat("pg_prove: " $0)
}

/^Result: / { repeat("pg_prove: " $0) }
/NOT exercised/ && !said[$0]++ { repeat($0) }

/^make: \*\*\* \[/ {
  steps += 1
  repeat($0)
}

END {
  if (status && !failed) failed = steps ? steps : 1
  printf "\n%s%d passed, %d failed\n", closing, passed, failed
}
