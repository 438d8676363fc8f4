// XDP programs of the firewall benchmark: a packet source, wrappers that give each run of a program under test another
// source address, and three controls that say what the least possible work costs.
#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/in6.h>
#include <linux/ip.h>
#include <linux/ipv6.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#define FRAME_MAX 80

// As `Setup` in object.rs.
struct setup {
    __u32 family;         // 4 or 6
    __u32 prefixes;       // 0: single addresses; 1: prefixes
    __u32 spread;         // 0: one after the other; 1: all over the address space
    __u32 blocked;        // 0: sources that no entry covers
    __u32 count;          // entries of the table
    __u32 interface;      // where the source sends
    __u32 ip_sum;         // of the IPv4 header without its source
    __u32 tcp_sum;        // of the TCP header and pseudo-header without source and source port
    __u8 frame[FRAME_MAX];
};
const volatile struct setup setup = {.family = 4, .count = 1};

struct { __uint(type, BPF_MAP_TYPE_PROG_ARRAY); __uint(max_entries, 1); __type(key, __u32); __type(value, __u32); } next SEC(".maps");
struct { __uint(type, BPF_MAP_TYPE_PROG_ARRAY); __uint(max_entries, 1); __type(key, __u32); __type(value, __u32); } next_frags SEC(".maps");

struct address6 { __u8 bytes[16]; };
struct prefix4 { __u32 len; __u32 address; };
struct prefix6 { __u32 len; struct address6 address; };
#define TABLE(NAME, TYPE, KEY) \
    struct { __uint(type, TYPE); __uint(max_entries, 1); __uint(map_flags, BPF_F_NO_PREALLOC); __type(key, KEY); __type(value, __u64); } NAME SEC(".maps")
TABLE(hash4, BPF_MAP_TYPE_HASH, __u32);
TABLE(hash6, BPF_MAP_TYPE_HASH, struct address6);
TABLE(lpm4, BPF_MAP_TYPE_LPM_TRIE, struct prefix4);
TABLE(lpm6, BPF_MAP_TYPE_LPM_TRIE, struct prefix6);

// A permutation of the numbers of `bits` bits; as `permute` in table.rs.
static __always_inline __u32 permute(__u32 x, __u32 bits) {
    __u32 mask = (1u << bits) - 1;
    x &= mask;
    x ^= x >> (bits / 2);
    x = (x * 0x7feb352du) & mask;
    x ^= x >> (bits / 2);
    x = (x * 0x846ca68bu) & mask;
    return x ^ (x >> (bits / 2));
}

// As `Table::entry4` in table.rs, with random bits behind a prefix.
static __always_inline __u32 source4(__u32 i, __u32 random) {
    if (!setup.spread) {
        __u32 address = 0x0a800000u + 4 * i + (setup.blocked ? 0 : 2);
        return setup.prefixes ? address | (random & 1) : address;
    }
    i += setup.blocked ? 0 : 1u << 21;
    if (!setup.prefixes) {
        __u32 x = permute(i, 31);
        return x < 0x40000000u ? 0x20000000u + x : 0x40000000u + x;
    }
    if (i % 32 == 0) return (0x80000000u + (permute(i / 32, 18) << 12)) | (random & 0xfff);
    __u32 hashed = i * 0x9e3779b1u, host_bits = 8;
    switch (hashed >> 29) {
    case 4: host_bits = 6; break;
    case 5: host_bits = 4; break;
    case 6: host_bits = 3; break;
    case 7: host_bits = 2; break;
    }
    __u32 host_mask = (1u << host_bits) - 1;
    __u32 network = (0x20000000u + (permute(i, 22) << 8)) | (hashed & 0xff & ~host_mask);
    return network | (random & host_mask);
}

static __always_inline __u64 site6(__u32 x, __u32 first) {
    return (__u64)(first + (x & 0xfff) * 0xa31u) << 32;
}

// As `Table::entry6` in table.rs, with random bits behind a prefix.
static __always_inline void source6(__u32 i, __u32 random, __u64 *high, __u64 *low) {
    __u64 noise = random * 0x9e3779b97f4a7c15ull;
    if (!setup.spread) {
        *high = 0x20010db800000000ull;
        if (setup.prefixes) {
            *high += 2 * (__u64)i + (setup.blocked ? 0 : 1);
            *low = noise;
        } else {
            *low = 4 * (__u64)i + (setup.blocked ? 0 : 2);
        }
        return;
    }
    i += setup.blocked ? 0 : 1u << 21;
    if (setup.prefixes && i % 32 == 0) {
        __u32 x = permute(i / 32, 28);
        *high = site6(x, 0x2c000000u) | (__u64)(x >> 12) << 16 | (random & 0xffff);
        *low = noise;
        return;
    }
    __u32 x = permute(i, 31), subnet = x >> 12;
    *high = site6(x, 0x2a000000u) | (__u64)(subnet >> 3) << 16 | (subnet & 7);
    *low = setup.prefixes ? noise : x * 0x9e3779b97f4a7c15ull;
}

static __always_inline __u16 checksum(__u32 sum) {
    sum = (sum & 0xffff) + (sum >> 16);
    sum = (sum & 0xffff) + (sum >> 16);
    return ~sum;
}

// Writes a random source into the frame and returns the sum of its 16-bit words.
static __always_inline __u32 write_source(__u8 *frame, __u32 random) {
    __u32 i = bpf_get_prandom_u32() % setup.count;
    if (setup.family == 4) {
        __u32 source = bpf_htonl(source4(i, random));
        *(__u32 *)(frame + 26) = source;
        return (source & 0xffff) + (source >> 16);
    }
    __u64 high, low;
    source6(i, random, &high, &low);
    high = bpf_cpu_to_be64(high);
    low = bpf_cpu_to_be64(low);
    __u32 words[4] = {high, high >> 32, low, low >> 32};
    __u32 sum = 0;
    for (int word = 0; word < 4; word++) {
        *(__u32 *)(frame + 22 + 4 * word) = words[word];
        sum += (words[word] & 0xffff) + (words[word] >> 16);
    }
    return sum;
}

SEC("xdp") int generate(struct xdp_md *ctx) {
    __u8 *frame = (void *)(long)ctx->data;
    __u32 length = setup.family == 4 ? 56 : FRAME_MAX;
    if (frame + FRAME_MAX > (__u8 *)(long)ctx->data_end) return XDP_ABORTED;
    for (__u32 at = 0; at < FRAME_MAX; at += 8)
        if (at < length) *(__u64 *)(frame + at) = *(volatile const __u64 *)(setup.frame + at);
    __u32 random = bpf_get_prandom_u32(), port = random >> 16;
    __u32 sum = write_source(frame, random);
    if (setup.family == 4) {
        *(__u16 *)(frame + 24) = checksum(setup.ip_sum + sum);
        *(__u16 *)(frame + 34) = port;
        *(__u16 *)(frame + 50) = checksum(setup.tcp_sum + sum + port);
    } else {
        *(__u16 *)(frame + 54) = port;
        *(__u16 *)(frame + 70) = checksum(setup.tcp_sum + sum + port);
    }
    return bpf_redirect(setup.interface, 0);
}

static __always_inline int vary_source(struct xdp_md *ctx) {
    __u8 *frame = (void *)(long)ctx->data;
    if (frame + 54 > (__u8 *)(long)ctx->data_end) return 0;
    write_source(frame, bpf_get_prandom_u32());
    return 1;
}

SEC("xdp") int vary(struct xdp_md *ctx) {
    if (vary_source(ctx)) bpf_tail_call(ctx, &next, 0);
    return XDP_ABORTED;
}

SEC("xdp.frags") int vary_frags(struct xdp_md *ctx) {
    if (vary_source(ctx)) bpf_tail_call(ctx, &next_frags, 0);
    return XDP_ABORTED;
}

SEC("xdp") int drop(struct xdp_md *ctx) { return XDP_DROP; }

// The IP header of that protocol, or 0.
static __always_inline void *header(struct xdp_md *ctx, __u16 protocol, __u32 length) {
    struct ethhdr *ethernet = (void *)(long)ctx->data;
    void *ip = ethernet + 1;
    if (ip + length > (void *)(long)ctx->data_end || ethernet->h_proto != bpf_htons(protocol)) return 0;
    return ip;
}

SEC("xdp") int hash(struct xdp_md *ctx) {
    if (setup.family == 4) {
        struct iphdr *ip = header(ctx, ETH_P_IP, sizeof *ip);
        return ip && bpf_map_lookup_elem(&hash4, &ip->saddr) ? XDP_DROP : XDP_PASS;
    }
    struct ipv6hdr *ip = header(ctx, ETH_P_IPV6, sizeof *ip);
    return ip && bpf_map_lookup_elem(&hash6, &ip->saddr) ? XDP_DROP : XDP_PASS;
}

SEC("xdp") int lpm(struct xdp_md *ctx) {
    if (setup.family == 4) {
        struct iphdr *ip = header(ctx, ETH_P_IP, sizeof *ip);
        if (!ip) return XDP_PASS;
        struct prefix4 key = {32, ip->saddr};
        return bpf_map_lookup_elem(&lpm4, &key) ? XDP_DROP : XDP_PASS;
    }
    struct ipv6hdr *ip = header(ctx, ETH_P_IPV6, sizeof *ip);
    if (!ip) return XDP_PASS;
    struct prefix6 key = {.len = 128};
    __builtin_memcpy(&key.address, &ip->saddr, sizeof key.address);
    return bpf_map_lookup_elem(&lpm6, &key) ? XDP_DROP : XDP_PASS;
}

char _license[] SEC("license") = "GPL";
