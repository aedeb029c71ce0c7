/*
 * A slow link between two network namespaces, for kernels without netem: forwards packets between two TUN devices named
 * `wire`, each direction with its own rate, delay and queue of 1000 packets, as `tc qdisc add … netem rate R delay D` would
 * (whose default limit that is).
 *
 *   link NAMESPACE NAMESPACE MBIT_PER_SECOND DELAY_MS
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/if_tun.h>
#include <net/if.h>
#include <pthread.h>
#include <sched.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <time.h>
#include <unistd.h>

enum { PACKET_BYTES = 2048, QUEUE_PACKETS = 1000 };
static const int64_t SECOND = 1000000000;

struct packet {
  int64_t due; /* nanoseconds of CLOCK_MONOTONIC */
  size_t length;
  uint8_t bytes[PACKET_BYTES];
};

struct direction {
  int from, to;
  int64_t bits_per_second, delay;
  pthread_mutex_t lock;
  pthread_cond_t filled;
  unsigned head, count;
  struct packet queue[QUEUE_PACKETS];
};

static int64_t now(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return t.tv_sec * SECOND + t.tv_nsec;
}

static void *receive(void *argument) {
  struct direction *d = argument;
  int64_t idle = 0; /* when the line will have sent all that was queued */
  static _Thread_local uint8_t bytes[PACKET_BYTES];
  for (;;) {
    ssize_t length = read(d->from, bytes, sizeof bytes);
    if (length <= 0) exit(1);
    pthread_mutex_lock(&d->lock);
    if (d->count < QUEUE_PACKETS) {
      int64_t start = now();
      if (idle < start) idle = start;
      idle += length * 8 * SECOND / d->bits_per_second;
      struct packet *p = &d->queue[(d->head + d->count++) % QUEUE_PACKETS];
      p->due = idle + d->delay;
      p->length = (size_t)length;
      memcpy(p->bytes, bytes, p->length);
      pthread_cond_signal(&d->filled);
    }
    pthread_mutex_unlock(&d->lock);
  }
}

static void *deliver(void *argument) {
  struct direction *d = argument;
  for (;;) {
    pthread_mutex_lock(&d->lock);
    while (d->count == 0) pthread_cond_wait(&d->filled, &d->lock);
    struct packet *p = &d->queue[d->head];
    pthread_mutex_unlock(&d->lock);
    struct timespec due = {p->due / SECOND, p->due % SECOND};
    clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &due, NULL);
    /* EIO: the device is down, the packet is lost. */
    if (write(d->to, p->bytes, p->length) < 0 && errno != EIO) exit(1);
    pthread_mutex_lock(&d->lock);
    d->head = (d->head + 1) % QUEUE_PACKETS;
    d->count--;
    pthread_mutex_unlock(&d->lock);
  }
}

static int open_in(const char *name) {
  char path[256];
  snprintf(path, sizeof path, "/run/netns/%s", name);
  int ns = open(path, O_RDONLY);
  /* A TUN device belongs to the namespace that it was opened in. */
  int tun = ns < 0 || setns(ns, CLONE_NEWNET) < 0 ? -1 : open("/dev/net/tun", O_RDWR);
  struct ifreq request = {.ifr_name = "wire", .ifr_flags = IFF_TUN | IFF_NO_PI};
  if (tun < 0 || ioctl(tun, TUNSETIFF, &request) < 0) {
    perror(path);
    exit(1);
  }
  close(ns);
  return tun;
}

int main(int argc, char **argv) {
  if (argc != 5) return 2;
  int ends[2];
  for (int i = 0; i < 2; i++) ends[i] = open_in(argv[1 + i]);
  static struct direction directions[2];
  pthread_t thread;
  for (int i = 0; i < 2; i++) {
    struct direction *d = &directions[i];
    d->from = ends[i];
    d->to = ends[1 - i];
    d->bits_per_second = (int64_t)(atof(argv[3]) * 1e6);
    d->delay = (int64_t)(atof(argv[4]) * 1e6);
    pthread_mutex_init(&d->lock, NULL);
    pthread_cond_init(&d->filled, NULL);
    if (pthread_create(&thread, NULL, receive, d) || pthread_create(&thread, NULL, deliver, d)) return 1;
  }
  puts("up");
  fflush(stdout);
  pause();
}
