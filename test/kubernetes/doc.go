// Package kubernetes runs Request Mirror in a cluster without containers: a real etcd,
// kube-apiserver, kubectl and Traefik, and every manifest of examples/kubernetes as it is
// shipped. What a kubelet and kube-proxy would do is played: the program of a
// Deployment is started with its arguments, volumes and service account, in a root
// directory of its own.
//
// All of it lives in a sandbox of namespaces of its own, so that ports, addresses and
// mounts are free, and nothing outside is reached. Where the system forbids that, the
// tests that need it are skipped and say so.
package kubernetes
