#!/bin/sh
# Runs a compiler and keeps what it says in a log beside the object file, x.o.log for "-o x.o". What a failed one
# says is also shown.
object=
previous=
for argument; do
    if [ "$previous" = -o ]; then object=$argument; fi
    previous=$argument
done
"$@" 2> "$object.log"
status=$?
if [ $status -ne 0 ]; then cat "$object.log" >&2; fi
exit $status
