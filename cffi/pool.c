/*
 * A thread pool for calls that may take long, so that the thread of the event loop never does. A job is a call of one of
 * the functions below; its result goes to the queue of whoever asked, who is woken by a write to a descriptor.
 *
 * To add a job: a function and its place in `functions` here, POOL_… in shim.h, its name in JOBS of src/native/pool.ts.
 * The function may call anything in any file; memory that its arguments point to stays valid until its result is taken.
 */
#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "shim.h"

/*
 * Threads start when no idle one is there, and stay. A job may wait for what another job brings about, so this is more
 * than the number of jobs that ever wait at once.
 */
#define MAX_THREADS 64

static int run_fsync(const double *a) { return fsync((int)a[0]) == 0 ? 0 : -errno; }

static int run_fdatasync(const double *a) { return fdatasync((int)a[0]) == 0 ? 0 : -errno; }

static void *address(double argument) { return (void *)(uintptr_t)argument; }

static int run_mount(const double *a) {
  return shim_mount(address(a[0]), address(a[1]), address(a[2]), (uint32_t)a[3], address(a[4]));
}

static int run_unmount(const double *a) { return shim_unmount(address(a[0]), (uint32_t)a[1]); }

static int run_open_served(const double *a) { return shim_fuse_open_served((int)a[0], address(a[1]), (int)a[2]); }

static int run_loop_attach(const double *a) {
  return shim_loop_attach((int)a[0], (int)a[1], (uint32_t)a[2], address(a[3]));
}

static int run_loop_release(const double *a) { return shim_loop_release((int)a[0]); }

static int run_sha256_chunks(const double *a) {
  return shim_sha256_chunks(address(a[0]), a[1], (uint32_t)a[2], (uint32_t)a[3], address(a[4]), a[5]);
}

static int run_sha256_file_chunks(const double *a) {
  return shim_sha256_file_chunks(address(a[0]), (int)a[1], a[2], (uint32_t)a[3], (uint32_t)a[4], address(a[5]), a[6]);
}

static int (*const functions[])(const double *arguments) = {
    [POOL_FSYNC] = run_fsync,
    [POOL_FDATASYNC] = run_fdatasync,
    [POOL_MOUNT] = run_mount,
    [POOL_UNMOUNT] = run_unmount,
    [POOL_OPEN_SERVED] = run_open_served,
    [POOL_LOOP_ATTACH] = run_loop_attach,
    [POOL_LOOP_RELEASE] = run_loop_release,
    [POOL_SHA256_CHUNKS] = run_sha256_chunks,
    [POOL_SHA256_FILE_CHUNKS] = run_sha256_file_chunks,
};

#define FUNCTIONS (sizeof functions / sizeof *functions)

struct job {
  struct job *next;
  struct pool_queue *queue;
  uint32_t id, kind;
  int32_t result;
  double arguments[POOL_ARGUMENTS];
};

struct list {
  struct job *first, *last;
};

struct pool_queue {
  pthread_mutex_t lock;
  struct list finished;
  int wake;
  uint32_t users; /* the owner, and every job that is not in `finished` yet */
  bool closed;
};

static struct {
  pthread_mutex_t lock;
  pthread_cond_t filled;
  struct list waiting;
  uint32_t waiting_jobs, idle_threads, threads;
} pool = {.lock = PTHREAD_MUTEX_INITIALIZER, .filled = PTHREAD_COND_INITIALIZER};

static void append(struct list *list, struct job *job) {
  job->next = NULL;
  if (list->first == NULL) list->first = job;
  else list->last->next = job;
  list->last = job;
}

static struct job *take(struct list *list) {
  struct job *job = list->first;
  if (job != NULL) list->first = job->next;
  return job;
}

/* Gives up one use of the queue, whose lock is held; unlocks it, and frees it after the last. */
static void release(struct pool_queue *queue) {
  const bool last = --queue->users == 0;
  pthread_mutex_unlock(&queue->lock);
  if (!last) return;
  for (struct job *job; (job = take(&queue->finished)) != NULL;) free(job);
  pthread_mutex_destroy(&queue->lock);
  free(queue);
}

static void finish(struct job *job) {
  struct pool_queue *queue = job->queue;
  pthread_mutex_lock(&queue->lock);
  const bool first = queue->finished.first == NULL;
  append(&queue->finished, job);
  if (first && !queue->closed) {
    /* An eventfd adds the number up, a socket carries it as bytes; one that is full wakes its reader anyway. */
    const uint64_t one = 1;
    while (write(queue->wake, &one, sizeof one) < 0 && errno == EINTR) continue;
  }
  release(queue);
}

static void *work(void *unused) {
  (void)unused;
  pthread_mutex_lock(&pool.lock);
  for (;;) {
    struct job *job = take(&pool.waiting);
    if (job == NULL) {
      pool.idle_threads++;
      pthread_cond_wait(&pool.filled, &pool.lock);
      pool.idle_threads--;
      continue;
    }
    pool.waiting_jobs--;
    pthread_mutex_unlock(&pool.lock);
    job->result = functions[job->kind](job->arguments);
    finish(job);
    pthread_mutex_lock(&pool.lock);
  }
  return NULL;
}

/* Signals are for the threads of the runtime, so pool threads are born with all of them blocked. */
static int start_thread(void) {
  pthread_t thread;
  sigset_t all, before;
  sigfillset(&all);
  pthread_sigmask(SIG_SETMASK, &all, &before);
  const int error = pthread_create(&thread, NULL, work, NULL);
  pthread_sigmask(SIG_SETMASK, &before, NULL);
  if (error == 0) pthread_detach(thread);
  return -error;
}

int shim_pool_socket(int32_t *ends) {
  int pair[2];
  if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, pair) < 0) return -errno;
  ends[0] = pair[0];
  ends[1] = pair[1];
  return 0;
}

int shim_pool_open(int wake, struct pool_queue **result) {
  struct pool_queue *queue = calloc(1, sizeof *queue);
  if (queue == NULL) return -ENOMEM;
  pthread_mutex_init(&queue->lock, NULL);
  queue->wake = wake;
  queue->users = 1;
  *result = queue;
  return 0;
}

void shim_pool_close(struct pool_queue *queue) {
  pthread_mutex_lock(&queue->lock);
  queue->closed = true;
  release(queue);
}

int shim_pool_submit(struct pool_queue *queue, uint32_t id, uint32_t kind, const double *arguments) {
  if (kind >= FUNCTIONS || functions[kind] == NULL) return -EINVAL;
  struct job *job = malloc(sizeof *job);
  if (job == NULL) return -ENOMEM;
  *job = (struct job){.queue = queue, .id = id, .kind = kind};
  memcpy(job->arguments, arguments, sizeof job->arguments);

  pthread_mutex_lock(&pool.lock);
  int error = 0;
  if (pool.idle_threads <= pool.waiting_jobs && pool.threads < MAX_THREADS) {
    error = start_thread();
    if (error == 0) pool.threads++;
  }
  if (error != 0 && pool.threads == 0) {
    pthread_mutex_unlock(&pool.lock);
    free(job);
    return error;
  }
  pthread_mutex_lock(&queue->lock);
  queue->users++;
  pthread_mutex_unlock(&queue->lock);
  append(&pool.waiting, job);
  pool.waiting_jobs++;
  pthread_cond_signal(&pool.filled);
  pthread_mutex_unlock(&pool.lock);
  return 0;
}

int shim_pool_take(struct pool_queue *queue, int32_t *results, uint32_t capacity) {
  uint32_t count = 0;
  pthread_mutex_lock(&queue->lock);
  for (struct job *job; count < capacity && (job = take(&queue->finished)) != NULL; count++) {
    results[2 * count] = (int32_t)job->id;
    results[2 * count + 1] = job->result;
    free(job);
  }
  pthread_mutex_unlock(&queue->lock);
  return (int)count;
}
