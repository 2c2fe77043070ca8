/* A load generator for the native protocol: one thread, epoll, TLS or plain, so that the server is the bottleneck.
 *
 *   cc -O2 -o load load.c -lssl -lcrypto
 *   ./load --port 7379 --op get --connections 50 --depth 16 --requests 100000
 *
 * Loopback only, and bounded: it ends after --requests replies, or when none came for ten seconds.
 * Prints one line of JSON: requests a second, and the median and 99th percentile of the latency in ms. */
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/tcp.h>
#include <openssl/ssl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <time.h>
#include <unistd.h>

enum { MAX_CONNECTIONS = 4096, BUFFER_BYTES = 4 << 20, STALL_MS = 10000 };

static struct {
    const char *op, *username, *password;
    int port, connections, depth, keys, value_bytes, plain;
    long requests;
} options = {"get", "kvsduser", "secret", 7379, 50, 1, 100000, 100, 0, 100000};

typedef struct {
    int fd;
    SSL *ssl;
    char *input;
    int filled, outstanding;
    double sent_at;
} Connection;

static long started, finished;
static double *latencies;
static char *output;

static void fail(const char *what) {
    fprintf(stderr, "load: %s\n", what);
    exit(1);
}

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec + t.tv_nsec * 1e-9;
}

/* Bytes read; 0 where none are there yet. */
static int receive(Connection *c, char *into, int room) {
    int got = c->ssl ? SSL_read(c->ssl, into, room) : (int)read(c->fd, into, room);
    if (got > 0) return got;
    if (c->ssl ? SSL_get_error(c->ssl, got) == SSL_ERROR_WANT_READ : got < 0 && errno == EAGAIN) return 0;
    fail("the server closed the connection");
    return 0;
}

static void transmit(Connection *c, const char *data, int size) {
    while (size > 0) {
        int sent = c->ssl ? SSL_write(c->ssl, data, size) : (int)write(c->fd, data, size);
        if (sent > 0) {
            data += sent;
            size -= sent;
        } else if (c->ssl ? SSL_get_error(c->ssl, sent) == SSL_ERROR_SYSCALL : errno != EAGAIN) {
            fail("cannot write");
        }
    }
}

/* One request at `at`; returns its length. */
static int request(char *at) {
    long key = strcmp(options.op, "fill") == 0 ? started % options.keys : rand() % options.keys;
    if (strcmp(options.op, "get") == 0) return sprintf(at, "*2\r\n#\x06+key:%012ld\r\n", key);
    if (strcmp(options.op, "ping") == 0) return sprintf(at, "*3\r\n#\x01||");
    int head = sprintf(at, "*3\r\n#\x05+key:%012ld\r\n$%d\r\n", key, options.value_bytes);
    memset(at + head, 'v', options.value_bytes);
    memcpy(at + head + options.value_bytes, "\r\n", 2);
    return head + options.value_bytes + 2;
}

static void ask(Connection *c) {
    int size = 0;
    while (c->outstanding < options.depth && started < options.requests) {
        size += request(output + size);
        c->outstanding++;
        started++;
    }
    c->sent_at = now();
    transmit(c, output, size);
}

/* The length of the whole reply at the start of `data`; 0 where it is incomplete. */
static int reply_bytes(const char *data, int size) {
    const char *line = memmem(data, size, "\r\n", 2);
    if (!line) return 0;
    int frames = atoi(data + 1), at = (int)(line - data) + 2;
    for (int i = 0; i < frames; i++) {
        if (at + 1 >= size && !(at < size && data[at] == '|')) return 0;
        switch (data[at]) {
        case '#':
            if (data[at + 1] == 4) fail("the server answered Fail");
            at += 2;
            break;
        case '|':
            at += 1;
            break;
        default:
            line = memmem(data + at, size - at, "\r\n", 2);
            if (!line) return 0;
            int body = data[at] == '$' ? atoi(data + at + 1) + 2 : 0;
            at = (int)(line - data) + 2 + body;
            if (at > size) return 0;
        }
    }
    return at;
}

static void take_replies(Connection *c) {
    int got, used = 0, length;
    while ((got = receive(c, c->input + c->filled, BUFFER_BYTES - c->filled)) > 0) c->filled += got;
    while ((length = reply_bytes(c->input + used, c->filled - used)) > 0) {
        used += length;
        c->outstanding--;
        latencies[finished++] = now() - c->sent_at;
    }
    memmove(c->input, c->input + used, c->filled - used);
    c->filled -= used;
}

static void log_in(Connection *c) {
    int size = sprintf(output, "*3\r\n#\x02+%s\r\n+%s\r\n", options.username, options.password);
    transmit(c, output, size);
    while (!reply_bytes(c->input, c->filled)) c->filled += receive(c, c->input + c->filled, BUFFER_BYTES - c->filled);
    c->filled = 0;
}

static void open_connection(Connection *c, SSL_CTX *context) {
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(options.port)};
    int one = 1;
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    c->fd = socket(AF_INET, SOCK_STREAM, 0);
    setsockopt(c->fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    if (connect(c->fd, (struct sockaddr *)&address, sizeof address)) fail("cannot connect");
    if (context) {
        c->ssl = SSL_new(context);
        SSL_set_fd(c->ssl, c->fd);
        SSL_set_tlsext_host_name(c->ssl, "localhost");
        if (SSL_connect(c->ssl) != 1) fail("no TLS handshake");
    }
    c->input = malloc(BUFFER_BYTES);
    log_in(c);
    fcntl(c->fd, F_SETFL, O_NONBLOCK);
}

static int ascending(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static void read_options(int count, char **words) {
    for (int i = 1; i < count; i++) {
        const char *name = words[i];
        if (strcmp(name, "--plain") == 0) {
            options.plain = 1;
            continue;
        }
        if (i + 1 == count) fail("an option needs a value");
        const char *value = words[++i];
        if (strcmp(name, "--op") == 0) options.op = value;
        else if (strcmp(name, "--port") == 0) options.port = atoi(value);
        else if (strcmp(name, "--connections") == 0) options.connections = atoi(value);
        else if (strcmp(name, "--depth") == 0) options.depth = atoi(value);
        else if (strcmp(name, "--requests") == 0) options.requests = atol(value);
        else if (strcmp(name, "--keys") == 0) options.keys = atoi(value);
        else if (strcmp(name, "--value-bytes") == 0) options.value_bytes = atoi(value);
        else if (strcmp(name, "--username") == 0) options.username = value;
        else if (strcmp(name, "--password") == 0) options.password = value;
        else fail("options: --op fill|set|get|ping --port --connections --depth --requests --keys --value-bytes "
                  "--username --password --plain");
    }
    if (options.connections > MAX_CONNECTIONS) fail("too many connections");
    if ((long)options.depth * (options.value_bytes + 64) > BUFFER_BYTES) fail("depth times value is too large");
}

int main(int count, char **words) {
    read_options(count, words);
    latencies = malloc(sizeof(double) * (options.requests + 1));
    output = malloc(BUFFER_BYTES);
    SSL_CTX *context = options.plain ? NULL : SSL_CTX_new(TLS_client_method());
    Connection *connections = calloc(options.connections, sizeof(Connection));
    int poll = epoll_create1(0);
    for (int i = 0; i < options.connections; i++) {
        struct epoll_event event = {.events = EPOLLIN, .data.ptr = &connections[i]};
        open_connection(&connections[i], context);
        epoll_ctl(poll, EPOLL_CTL_ADD, connections[i].fd, &event);
    }
    double begin = now();
    for (int i = 0; i < options.connections; i++) ask(&connections[i]);
    while (finished < options.requests) {
        struct epoll_event events[256];
        int ready = epoll_wait(poll, events, 256, STALL_MS);
        if (ready == 0) fail("no reply for ten seconds");
        for (int i = 0; i < ready; i++) {
            Connection *c = events[i].data.ptr;
            take_replies(c);
            if (c->outstanding == 0) ask(c);
        }
    }
    double seconds = now() - begin;
    qsort(latencies, finished, sizeof(double), ascending);
    printf("{\"op\": \"%s\", \"connections\": %d, \"depth\": %d, \"per_second\": %.0f, \"p50_ms\": %.3f, \"p99_ms\": %.3f}\n",
           options.op, options.connections, options.depth, finished / seconds, latencies[finished / 2] * 1e3,
           latencies[(long)(finished * 0.99)] * 1e3);
    return 0;
}
