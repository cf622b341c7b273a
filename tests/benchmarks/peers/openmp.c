/* The C OpenMP contender: what threads cost without Python.
 *
 * It reads a question a line, "measure argument ...", and answers "ok NUMBER" or
 * "failed REASON" (see host.py, whose language this is). Waiting is passive
 * (OMP_WAIT_POLICY is set by the lane).
 */
#define _GNU_SOURCE
#include <omp.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

static volatile int sink[1024][16]; /* a cache line for each thread */

static int ascending(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

/* Median duration of call(), each timed alone, over about so many seconds: timing.typical. */
static double typical(void (*call)(int), int argument, double seconds)
{
    enum { MOST = 1 << 20 };
    static double durations[MOST];
    int n = 0;
    double end = omp_get_wtime() + seconds / 5;
    do
        call(argument);
    while (omp_get_wtime() < end);
    end = omp_get_wtime() + seconds;
    while (n < 3 || (n < MOST && omp_get_wtime() < end)) {
        double began = omp_get_wtime();
        call(argument);
        durations[n++] = omp_get_wtime() - began;
    }
    qsort(durations, n, sizeof *durations, ascending);
    return n % 2 ? durations[n / 2] : (durations[n / 2 - 1] + durations[n / 2]) / 2;
}

static void region(int threads)
{
#pragma omp parallel num_threads(threads)
    sink[omp_get_thread_num()][0]++;
}

static double barriers(int count, int threads)
{
    double began = 0, ended = 0;
#pragma omp parallel num_threads(threads)
    {
#pragma omp barrier
        if (omp_get_thread_num() == 0)
            began = omp_get_wtime();
        for (int k = 0; k < count; k++) {
#pragma omp barrier
        }
        if (omp_get_thread_num() == 0)
            ended = omp_get_wtime();
    }
    return (ended - began) / count;
}

static double locks(int count)
{
    omp_lock_t lock;
    omp_init_lock(&lock);
    double began = omp_get_wtime();
    for (int k = 0; k < count; k++) {
        omp_set_lock(&lock);
        omp_unset_lock(&lock);
    }
    double ended = omp_get_wtime();
    omp_destroy_lock(&lock);
    return (ended - began) / count;
}

/* Three arrays of n doubles in the heap, or in shared memory as dsmfor's are; first touched by
 * the threads that use them. They live until the program ends. */
static double *arrays[2]; /* on the heap, in shared memory */
static long length;

static double *new_arrays(long n, int shared)
{
    double *memory;
    size_t bytes = 3 * n * sizeof(double);
    if (shared) {
        int fd = memfd_create("triad", MFD_CLOEXEC);
        if (fd < 0 || ftruncate(fd, bytes))
            exit(1);
        memory = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
        close(fd);
        if (memory == MAP_FAILED)
            exit(1);
    } else if (posix_memalign((void **)&memory, 4096, bytes))
        exit(1);
#pragma omp parallel for schedule(static) num_threads(2)
    for (long i = 0; i < n; i++)
        memory[i] = memory[n + i] = memory[2 * n + i] = 1;
    return memory;
}

static void triad(int shared)
{
    double *A = arrays[shared], *B = A + length, *C = B + length;
#pragma omp parallel for schedule(static) num_threads(2)
    for (long i = 0; i < length; i++)
        A[i] = B[i] + 3.0 * C[i];
}

/* Bytes per second: two arrays read, one written. */
static double bandwidth(long n, int shared, double seconds)
{
    if (!arrays[shared])
        arrays[shared] = new_arrays(n, shared);
    length = n;
    return 24.0 * n / typical(triad, shared, seconds);
}

static uint64_t burn(long turns)
{
    uint64_t x = turns;
    for (long k = 0; k < 20 * turns; k++)
        x = x * 6364136223846793005u + 1442695040888963407u;
    return x;
}

/* Duration of the triangular loop on two threads, over half of its duration on one. */
static double triangle(long n)
{
    double began = omp_get_wtime();
    for (long i = 0; i < n; i++)
        sink[0][0] += burn(i);
    double alone = omp_get_wtime() - began;
    began = omp_get_wtime();
#pragma omp parallel for schedule(dynamic) num_threads(2)
    for (long i = 0; i < n; i++)
        sink[omp_get_thread_num()][0] += burn(i);
    return (omp_get_wtime() - began) / (alone / 2);
}

int main(void)
{
    char line[256], name[64];
    setvbuf(stdout, NULL, _IOLBF, 0);
    puts("ok 0");
    while (fgets(line, sizeof line, stdin)) {
        double x = 0, y = 0, z = 0, answer;
        if (sscanf(line, "%63s %lf %lf %lf", name, &x, &y, &z) < 1)
            continue;
        if (!strcmp(name, "empty_region"))
            answer = typical(region, y, x);
        else if (!strcmp(name, "start_team"))
            region(x), answer = 0;
        else if (!strcmp(name, "barrier"))
            answer = barriers(x, y);
        else if (!strcmp(name, "lock"))
            answer = locks(x);
        else if (!strcmp(name, "triad"))
            answer = bandwidth(x, 0, y);
        else if (!strcmp(name, "triad_shared"))
            answer = bandwidth(x, 1, y);
        else if (!strcmp(name, "triangle"))
            answer = triangle(x);
        else {
            printf("failed no measure %s\n", name);
            continue;
        }
        printf("ok %.17g\n", answer);
    }
    return 0;
}
