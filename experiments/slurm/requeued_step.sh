# shellcheck shell=bash
# For the job scripts beside it: a job step that goes on after the job's time is over.

# Starts its arguments by srun. When SLURM says that time is nearly over (SIGUSR1 to this shell, asked for by
# `#SBATCH --signal=B:USR1@…`), the processes are told; they save at the end of their running step and leave, and the
# job is queued again under its number, unless they end with 2: a mistake or a full disk, which a start mends not. A step
# that ends by itself, well or not, ends the job.
requeued_step() {
    local code=0 out_of_time=no
    # Once: a second signal would cut the wait for the step short, and the processes leave without saving at a second.
    trap 'out_of_time=yes; trap "" USR1; kill -USR1 "$step" || true' USR1
    # srun does not take the number of cores over from sbatch. Processes are not bound to cores of their own, since
    # each counts those it may use and shares them with the others of its machine.
    SRUN_CPUS_PER_TASK=${SLURM_CPUS_PER_TASK:-1} srun --cpu-bind=none "$@" &
    local step=$!
    wait "$step" || code=$?
    if [[ $out_of_time == yes ]]; then
        # The signal ended the first wait, not the step.
        code=0
        wait "$step" || code=$?
        if ((code != 0 && code != 2)); then
            echo "out of time: queueing job $SLURM_JOB_ID again" >&2
            scontrol requeue "$SLURM_JOB_ID"
        fi
    fi
    return "$code"
}
