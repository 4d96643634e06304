# examples/kubernetes/plugin-source.sh directory
# docker build -t registry.example.com/request-mirror-plugin:v0.1.0 -f examples/kubernetes/helm/plugin.Dockerfile examples/kubernetes/plugins-local
# busybox is there for the init container's cp.
FROM busybox:1.37
COPY go.mod .traefik.yml *.go /plugin/
