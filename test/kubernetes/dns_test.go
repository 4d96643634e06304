package kubernetes

import (
	"context"
	"net"
	"strings"
	"sync/atomic"
	"testing"

	"golang.org/x/net/dns/dnsmessage"
	meta "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// nameServer answers <service>.<namespace>.svc.cluster.local, as a cluster's does.
type nameServer struct {
	cluster atomic.Pointer[cluster]
	conn    net.PacketConn
}

const nameServerAddress = "127.0.0.53"

func startNameServer(c *cluster) (*nameServer, error) {
	conn, err := net.ListenPacket("udp", nameServerAddress+":53")
	if err != nil {
		return nil, err
	}
	s := &nameServer{conn: conn}
	s.cluster.Store(c)
	go s.serve()
	return s, nil
}

func (s *nameServer) close() { _ = s.conn.Close() }

// lend has it answer for another cluster for the time of a test.
func (s *nameServer) lend(t *testing.T, c *cluster) {
	before := s.cluster.Swap(c)
	t.Cleanup(func() { s.cluster.Store(before) })
}

func (s *nameServer) serve() {
	buf := make([]byte, 1500)
	for {
		n, from, err := s.conn.ReadFrom(buf)
		if err != nil {
			return
		}
		var m dnsmessage.Message
		if m.Unpack(buf[:n]) != nil || len(m.Questions) != 1 {
			continue
		}
		s.answer(&m)
		if out, err := m.Pack(); err == nil {
			_, _ = s.conn.WriteTo(out, from)
		}
	}
}

func (s *nameServer) answer(m *dnsmessage.Message) {
	q := m.Questions[0]
	m.Response, m.Authoritative, m.Additionals = true, true, nil
	name, found := strings.CutSuffix(strings.ToLower(q.Name.String()), ".svc.cluster.local.")
	service, namespace, _ := strings.Cut(name, ".")
	m.RCode = dnsmessage.RCodeNameError
	if !found {
		return
	}
	o, err := s.cluster.Load().client.CoreV1().Services(namespace).Get(context.Background(), service, meta.GetOptions{})
	if err != nil {
		return
	}
	m.RCode = dnsmessage.RCodeSuccess
	if ip := net.ParseIP(o.Spec.ClusterIP).To4(); ip != nil && q.Type == dnsmessage.TypeA {
		m.Answers = []dnsmessage.Resource{{
			Header: dnsmessage.ResourceHeader{Name: q.Name, Type: q.Type, Class: q.Class, TTL: 1},
			Body:   &dnsmessage.AResource{A: [4]byte(ip)},
		}}
	}
}
